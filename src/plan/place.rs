//! Placement of slabs in chunks: greedy by size, within the device's buffer limit.
//!
//! wgpu refuses one buffer bound `read` and `read_write` in one dispatch, even at disjoint ranges, so a slab never lies in
//! the chunk of a slab that one of its dispatches binds with the opposite access. Sources: greedy by size after Pisarchyk
//! & Lee (arXiv 2001.03288); (chunk, offset) addresses after ggml-alloc.

/// A slab to place.
#[derive(Clone, Debug)]
pub(super) struct Slab {
    /// Bytes, aligned.
    pub size: u64,
    /// First task that holds it.
    pub begin: u32,
    /// Last task that holds it.
    pub end: u32,
    /// Slabs that must not share a chunk with this one.
    pub apart: Vec<u32>,
}

impl Slab {
    fn overlaps(&self, other: &Self) -> bool {
        self.begin <= other.end && other.begin <= self.end
    }
}

/// Where a slab lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub chunk: u32,
    pub offset: u64,
}

/// Places of all slabs, and the chunks' sizes.
#[derive(Clone, Debug, Default)]
pub(super) struct Placement {
    pub places: Vec<Place>,
    pub chunks: Vec<u64>,
}

/// Orders in which slabs are placed; the best result is kept. By size is the best known single rule; the others win where
/// many slabs of a few sizes roll through the volume.
type Key = fn(&Slab) -> (std::cmp::Reverse<u64>, u32, std::cmp::Reverse<u64>);
const ORDERS: [Key; 4] = [
    |s| (std::cmp::Reverse(s.size), s.begin, std::cmp::Reverse(0)),
    |s| (std::cmp::Reverse(0), s.begin, std::cmp::Reverse(s.size)),
    |s| (std::cmp::Reverse(u64::from(s.end - s.begin)), s.begin, std::cmp::Reverse(s.size)),
    |s| (std::cmp::Reverse(s.size * u64::from(s.end - s.begin + 1)), s.begin, std::cmp::Reverse(0)),
];

/// Slabs placed an order, in rounds; from round to round the slabs that hold up the chunks come first.
const WORK: usize = 20_000;
const ROUNDS: std::ops::RangeInclusive<usize> = 2..=40;

/// Places every slab; no chunk exceeds `cap` bytes (a slab larger than that gets a chunk of its own, the caller checks).
pub(super) fn place(slabs: &[Slab], cap: u64) -> Placement {
    let total = |p: &Placement| p.chunks.iter().sum::<u64>();
    let bound = max_live(slabs);
    let mut best: Option<Placement> = None;
    for key in ORDERS {
        let mut order: Vec<u32> = (0..u32::try_from(slabs.len()).unwrap_or(u32::MAX)).collect();
        order.sort_by_key(|&i| (key(&slabs[i as usize]), i));
        for _ in 0..(WORK / slabs.len().max(1)).clamp(*ROUNDS.start(), *ROUNDS.end()) {
            let p = greedy(slabs, cap, &order);
            // stable: the others keep their order
            order.sort_by_key(|&i| p.places[i as usize].offset + slabs[i as usize].size != p.chunks[p.places[i as usize].chunk as usize]);
            if best.as_ref().is_none_or(|b| total(&p) < total(b)) {
                best = Some(p);
            }
            if best.as_ref().is_some_and(|b| total(b) == bound) {
                break;
            }
        }
    }
    best.unwrap_or_default()
}

/// Places slabs in the given order, each where the chunks grow least.
fn greedy(slabs: &[Slab], cap: u64, order: &[u32]) -> Placement {
    let mut placed: Vec<Option<Place>> = vec![None; slabs.len()];
    let mut members: Vec<Vec<u32>> = Vec::new();
    let mut chunks: Vec<u64> = Vec::new();
    for &i in order {
        let slab = &slabs[i as usize];
        let mut best: Option<(u64, u64, Place)> = None;
        for (chunk, size) in chunks.iter().enumerate() {
            let id = u32::try_from(chunk).unwrap_or(u32::MAX);
            if slab.apart.iter().any(|&o| placed[o as usize].is_some_and(|p| p.chunk == id)) {
                continue;
            }
            let mut taken: Vec<(u64, u64)> = members[chunk]
                .iter()
                .filter(|&&m| slabs[m as usize].overlaps(slab))
                .filter_map(|&m| placed[m as usize].map(|p| (p.offset, p.offset + slabs[m as usize].size)))
                .collect();
            taken.sort_unstable();
            let (offset, slack) = best_gap(&taken, slab.size, *size);
            let growth = (offset + slab.size).saturating_sub(*size);
            if offset + slab.size <= cap && best.is_none_or(|(g, s, _)| (growth, slack) < (g, s)) {
                best = Some((growth, slack, Place { chunk: id, offset }));
            }
        }
        let at = best.map_or_else(
            || {
                chunks.push(0);
                members.push(Vec::new());
                Place { chunk: u32::try_from(chunks.len() - 1).unwrap_or(u32::MAX), offset: 0 }
            },
            |(_, _, at)| at,
        );
        let chunk = at.chunk as usize;
        chunks[chunk] = chunks[chunk].max(at.offset + slab.size);
        members[chunk].push(i);
        placed[i as usize] = Some(at);
    }
    Placement { places: placed.into_iter().flatten().collect(), chunks }
}

/// Offset of the tightest gap between `taken` ranges that holds `size`, else the end; and how much it leaves unused.
fn best_gap(taken: &[(u64, u64)], size: u64, chunk: u64) -> (u64, u64) {
    let mut best: Option<(u64, u64)> = None;
    let mut at = 0;
    for &(begin, end) in taken {
        if begin >= at + size && best.is_none_or(|(_, slack)| begin - at - size < slack) {
            best = Some((at, begin - at - size));
        }
        at = at.max(end);
    }
    best.unwrap_or((at, chunk.saturating_sub(at + size)))
}

/// Most bytes alive at once: no placement can do with less.
pub(super) fn max_live(slabs: &[Slab]) -> u64 {
    let last = slabs.iter().map(|s| s.end as usize).max().unwrap_or(0);
    let mut change = vec![0i128; last + 2];
    for s in slabs {
        change[s.begin as usize] += i128::from(s.size);
        change[s.end as usize + 1] -= i128::from(s.size);
    }
    let mut live = 0;
    let mut most = 0;
    for c in change {
        live += c;
        most = most.max(live);
    }
    u64::try_from(most).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(slabs: &[Slab], cap: u64) -> Placement {
        let p = place(slabs, cap);
        assert_eq!(p.places.len(), slabs.len());
        for (i, a) in slabs.iter().enumerate() {
            let at = p.places[i];
            assert!(at.offset + a.size <= p.chunks[at.chunk as usize]);
            for (j, b) in slabs.iter().enumerate().skip(i + 1) {
                let other = p.places[j];
                if at.chunk == other.chunk {
                    assert!(!a.apart.contains(&(j as u32)), "opposite access in one chunk");
                    let apart = at.offset + a.size <= other.offset || other.offset + b.size <= at.offset;
                    assert!(!a.overlaps(b) || apart, "{i} and {j} overlap");
                }
            }
        }
        p
    }

    #[test]
    fn a_chain_alternates_between_two_chunks() {
        let slab = |i: u32, apart: &[u32]| Slab { size: 256, begin: i, end: i + 1, apart: apart.to_vec() };
        let p = check(&[slab(0, &[1]), slab(1, &[0, 2]), slab(2, &[1, 3]), slab(3, &[2])], 1 << 20);
        assert_eq!(p.chunks, [256, 256]);
    }

    proptest! {
        #[test]
        fn random_slabs_never_collide(sizes in prop::collection::vec((1u64..40, 0u32..30, 0u32..6, 0usize..4), 1..60)) {
            let mut slabs: Vec<Slab> = sizes.iter().map(|&(size, begin, len, _)| Slab { size: size * 256, begin, end: begin + len, apart: vec![] }).collect();
            for (i, &(.., back)) in sizes.iter().enumerate() {
                if back > 0 && i >= back {
                    slabs[i].apart.push((i - back) as u32);
                    slabs[i - back].apart.push(i as u32);
                }
            }
            let p = check(&slabs, 64 * 256);
            prop_assert!(p.chunks.iter().all(|&c| c <= 64 * 256));
            prop_assert!(p.chunks.iter().sum::<u64>() >= max_live(&slabs));
        }
    }
}
