//! The assembly of Mesa's AMD compiler (ACO, 25.0): its blocks, its loops, and what a loop costs.

use std::collections::{BTreeMap, HashMap};

use crate::jobs::Trips;

/// Instructions of a path by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Multiply-adds of the vector unit.
    pub fma: u32,
    /// Of these, those of sums: not of norms or resampling, where the runs of inner loops tell them
    /// apart.
    pub useful: u32,
    /// Other instructions of the vector unit.
    pub other: u32,
    /// Of both, those of a quarter of the rate: 32-bit integer products, transcendentals.
    pub quarter: u32,
    /// Of both, those that RDNA3 issues two at a time: f32 multiply, add, multiply-add, minimum,
    /// maximum.
    pub dual: u32,
    /// Scalar instructions, scalar loads and branches.
    pub scalar: u32,
    /// Vector loads and stores of buffers.
    pub buffer: u32,
    /// Reads and writes of workgroup memory.
    pub shared: u32,
    /// Waits for loads.
    pub waits: u32,
}

impl Counts {
    fn plus(self, o: Self, times: u32) -> Self {
        Self {
            fma: self.fma + o.fma * times,
            useful: self.useful + o.useful * times,
            other: self.other + o.other * times,
            quarter: self.quarter + o.quarter * times,
            dual: self.dual + o.dual * times,
            scalar: self.scalar + o.scalar * times,
            buffer: self.buffer + o.buffer * times,
            shared: self.shared + o.shared * times,
            waits: self.waits + o.waits * times,
        }
    }

    /// Vector instructions.
    pub fn vector(self) -> u32 {
        self.fma + self.other
    }

    /// Which of two paths is the hotter: more multiply-adds, then more loads, then fewer others.
    fn heat(self) -> (u32, u32, i64) {
        (self.fma, self.buffer, -i64::from(self.other + self.scalar + self.shared))
    }

    /// Share of the peak of multiply-adds that the instructions allow when nothing is waited for.
    pub fn share(self, gpu: Generation) -> f64 {
        let [vector, dual, quarter, scalar] = gpu.cycles();
        let plain = self.vector().saturating_sub(self.dual + self.quarter);
        let vectors = vector * plain + dual * self.dual + quarter * self.quarter;
        let cycles = vectors.max(scalar * self.scalar);
        if cycles == 0 { 0.0 } else { f64::from(self.useful * dual) / f64::from(cycles) }
    }
}

/// Generation of a GPU, by which an instruction of a wave of 64 takes more or fewer cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// GCN: polaris10, vega10.
    Gcn,
    /// RDNA1 and RDNA2: navi10, navi21.
    Rdna2,
    /// RDNA3: navi31. That multiply-adds of f32 always issue in pairs is assumed.
    Rdna3,
}

impl Generation {
    /// Cycles of a vector instruction, of one that may issue in pairs, of one at a quarter of the
    /// rate, of a scalar one.
    fn cycles(self) -> [u32; 4] {
        match self {
            Self::Gcn => [4, 4, 16, 4],
            Self::Rdna2 => [2, 2, 8, 1],
            Self::Rdna3 => [2, 1, 8, 1],
        }
    }
}

fn starts(name: &str, stems: &[&str]) -> bool {
    stems.iter().any(|stem| name.starts_with(stem))
}

fn is_fma(name: &str) -> bool {
    let name = name.strip_prefix("v_").unwrap_or("");
    let name = name.strip_prefix("pk_").or(name.strip_prefix("dual_")).unwrap_or(name);
    let kinds = ["fmaak", "fmamk", "madak", "madmk", "fmac", "fma", "mac", "mad", "dot2"];
    let rest = kinds.iter().find_map(|kind| name.strip_prefix(kind));
    rest.is_some_and(|rest| starts(rest, &["_f32", "_f16", "_legacy", "_mix", "_dx9"]))
}

fn count(instruction: &str) -> Counts {
    let name = instruction.split_whitespace().next().unwrap_or("");
    let mut n = Counts::default();
    if name.starts_with("v_") {
        if is_fma(name) {
            (n.fma, n.useful) = (1, 1);
        } else {
            n.other = 1;
        }
        let slow = [
            "v_mul_lo",
            "v_mul_hi",
            "v_mad_u64",
            "v_mad_i64",
            "v_rcp",
            "v_rsq",
            "v_sqrt",
            "v_exp_f",
            "v_log_f",
        ];
        n.quarter = u32::from(starts(name, &slow) || starts(name, &["v_sin", "v_cos"]));
        let pairs = ["fmaak", "fmamk", "fmac", "fma", "mul", "add", "subrev", "sub", "max", "min"];
        let of = |kind: &&str| {
            name[2..].strip_prefix(*kind).is_some_and(|rest| rest.starts_with("_f32"))
        };
        n.dual = u32::from(pairs.iter().any(|kind| of(&kind)));
    } else if starts(name, &["buffer_", "global_", "flat_", "scratch_"]) {
        n.buffer = 1;
    } else if name.starts_with("ds_") {
        n.shared = 1;
    } else if starts(name, &["s_waitcnt_dep", "s_delay", "s_clause", "s_nop", "s_barrier"]) {
    } else if starts(name, &["s_waitcnt", "s_wait_"]) {
        n.waits = 1;
    } else {
        n.scalar = 1;
    }
    n
}

#[derive(Debug, Default)]
struct Block {
    counts: Counts,
    next: Vec<usize>,
}

/// Blocks in the order of the text; a jump that skips what no lane executes is taken for not taken.
fn blocks(text: &str) -> Vec<Block> {
    let mut lines: Vec<(usize, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        if let Some(number) = line.strip_prefix("BB").and_then(|l| l.trim_end().strip_suffix(':')) {
            if let Ok(number) = number.parse() {
                lines.push((number, Vec::new()));
                continue;
            }
        }
        let code = line.split(';').next().unwrap_or("").trim();
        if let (false, Some((_, block))) = (code.is_empty(), lines.last_mut()) {
            block.extend(code.split("::").map(str::trim));
        }
    }
    let places: HashMap<usize, usize> =
        lines.iter().enumerate().map(|(at, (n, _))| (*n, at)).collect();
    let last = lines.len().saturating_sub(1);
    let mut all = Vec::new();
    for (at, (_, instructions)) in lines.iter().enumerate() {
        let mut block = Block::default();
        let mut falls = true;
        for instruction in instructions {
            block.counts = block.counts.plus(count(instruction), 1);
            if starts(instruction, &["s_cbranch", "s_branch"]) {
                let target = instruction
                    .split("BB")
                    .nth(1)
                    .map(|t| t.trim_end_matches(|c: char| !c.is_ascii_digit()));
                let target =
                    target.and_then(|t| t.parse().ok()).and_then(|t: usize| places.get(&t));
                if !(instruction.contains("execz") && at < last) {
                    block.next.extend(target);
                }
            }
            falls &= !starts(instruction, &["s_branch", "s_endpgm"]);
        }
        if falls && at < last {
            block.next.push(at + 1);
        }
        all.push(block);
    }
    all
}

/// A loop: its first and last block.
type Span = (usize, usize);

fn spans(blocks: &[Block]) -> Vec<Span> {
    let mut ends: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, block) in blocks.iter().enumerate() {
        for &target in block.next.iter().filter(|&&t| t <= at) {
            let end = ends.entry(target).or_insert(at);
            *end = at.max(*end);
        }
    }
    ends.into_iter().collect()
}

fn within(inner: Span, outer: Span) -> bool {
    inner != outer && inner.0 >= outer.0 && inner.1 <= outer.1
}

/// Multiply-adds from which on a loop within a loop is taken for one of sums.
const SUMS: u32 = 32;

/// What one run of a loop executes on its hottest path; the loops within it run as often as `trips`
/// says, or not at all.
fn path(blocks: &[Block], all: &[Span], of: Span, trips: Option<(&[u32], u32)>) -> Counts {
    let inside: Vec<Span> = all.iter().copied().filter(|&s| within(s, of)).collect();
    let direct: Vec<Span> =
        inside.iter().copied().filter(|&s| !inside.iter().any(|&o| within(s, o))).collect();
    let mut best: BTreeMap<usize, Counts> = BTreeMap::from([(of.0, Counts::default())]);
    let mut result: Option<Counts> = None;
    // what such a loop itself multiplies are norms
    let outer = trips.is_some_and(|(sums, _)| !sums.is_empty());
    while let Some((at, before)) = best.pop_first() {
        let nested = direct.iter().copied().find(|s| s.0 == at);
        let (counts, next) = if let Some(span) = nested {
            let inner = trips.map(|(sums, fill)| (sums.get(1..).unwrap_or(&[]), fill));
            let mut once = path(blocks, all, span, inner);
            let mut runs = 0;
            if let Some((sums, fill)) = trips {
                let is_sum = once.fma >= SUMS;
                runs = if is_sum { sums.first().copied().unwrap_or(1) } else { fill };
                once.useful = if is_sum { once.useful } else { 0 };
            }
            let leave: Vec<usize> = (span.0..=span.1)
                .flat_map(|b| blocks[b].next.clone())
                .filter(|&t| t > span.1)
                .collect();
            (before.plus(once, runs), leave)
        } else {
            let own = blocks[at].counts;
            let useful = if outer { 0 } else { own.useful };
            (before.plus(Counts { useful, ..own }, 1), blocks[at].next.clone())
        };
        for target in next {
            if target == of.0 {
                if result.is_none_or(|r| counts.heat() > r.heat()) {
                    result = Some(counts);
                }
            } else if target > at && target <= of.1 {
                let entry = best.entry(target).or_insert(counts);
                if counts.heat() > entry.heat() {
                    *entry = counts;
                }
            }
        }
    }
    result.unwrap_or_default()
}

/// One run of the loop by which a kernel is judged: with `trips` the outermost with multiply-adds,
/// without them the loop that itself has most.
pub fn hot_loop(text: &str, trips: Option<&Trips>) -> Counts {
    let blocks = blocks(text);
    let all = spans(&blocks);
    let outermost = |s: &&Span| trips.is_none() || !all.iter().any(|&o| within(**s, o));
    let runs = trips.map(|t| (t.sums.as_slice(), t.fill));
    let loops = all.iter().filter(outermost).map(|&s| path(&blocks, &all, s, runs));
    loops.max_by_key(|n| (n.fma, n.vector())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTED: &str = "
BB0:
	s_mov_b32 s0, 0                  ; comment
BB1:
	buffer_load_b128 v[0:3], v4, s[0:3], 0 offen
	v_mul_lo_u32 v9, v8, s4
BB2:
	s_cbranch_execz BB4
BB3:
	v_add_nc_u32_e32 v8, 4, v8
BB4:
	s_waitcnt vmcnt(0)
BB5:
	v_fmac_f32_e32 v5, s1, v0
	v_dual_fmac_f32 v6, s2, v1 :: v_dual_mul_f32 v7, s2, v1
	s_cbranch_scc1 BB5
BB6:
	ds_write_b128 v1, v[0:3]
	s_cbranch_scc0 BB1
BB7:
	s_endpgm
";

    #[test]
    fn loops_are_counted_with_what_they_hold() {
        let inner = hot_loop(NESTED, None);
        assert_eq!((inner.fma, inner.other, inner.scalar), (2, 1, 1));
        let nested =
            NESTED.replace("BB5:", &format!("BB5:{}", "\n\tv_fmac_f32_e32 v5, s1, v0".repeat(98)));
        let whole = hot_loop(&nested, Some(&Trips { sums: vec![3], fill: 1 }));
        assert_eq!(
            (whole.fma, whole.quarter, whole.buffer, whole.shared, whole.waits),
            (300, 1, 1, 1, 1)
        );
        assert_eq!(
            (hot_loop(NESTED, Some(&Trips { sums: vec![3], fill: 2 })).fma, whole.useful),
            (4, 300)
        );
        assert_eq!(whole.other, 2 + 3, "an execz jump is not taken");
    }

    #[test]
    fn shares_weigh_rates() {
        let n = Counts {
            fma: 128,
            useful: 128,
            other: 27,
            quarter: 8,
            dual: 128,
            scalar: 36,
            ..Counts::default()
        };
        assert!((n.share(Generation::Rdna2) - 256.0 / (2.0 * 147.0 + 64.0)).abs() < 1e-9);
        assert!((n.share(Generation::Rdna3) - 128.0 / (128.0 + 2.0 * 19.0 + 64.0)).abs() < 1e-9);
        assert!((Counts { scalar: 1000, ..n }.share(Generation::Rdna2) - 0.256).abs() < 1e-9);
    }

    #[test]
    fn multiply_adds_have_many_names() {
        for name in [
            "v_fmac_f32_e32",
            "v_pk_fma_f16",
            "v_fma_mix_f32",
            "v_mad_f32",
            "v_fmaak_f32",
            "v_dot2_f32_f16",
            "v_mac_f32",
        ] {
            assert!(is_fma(name), "{name}");
        }
        assert!(!is_fma("v_mad_u32_u24") && !is_fma("v_mul_f32_e32") && !is_fma("s_mul_i32"));
    }
}
