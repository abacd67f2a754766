//! Bytes of slabs alive on the device over the tasks of a plan, and a drawing of them.

use std::fmt;

use super::place::Slab;
use crate::shape::format_bytes;

/// Bytes alive at each task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    alive: Vec<u64>,
    /// Bytes of the chunks that hold the slabs.
    chunks: u64,
}

/// Columns and rows of the drawing.
const COLUMNS: usize = 72;
const ROWS: usize = 8;

impl Occupancy {
    pub(super) fn new(lives: &[Slab], chunks: u64) -> Self {
        let tasks = lives.iter().map(|l| l.end as usize + 1).max().unwrap_or(0);
        let mut alive = vec![0u64; tasks];
        for life in lives {
            for at in &mut alive[life.begin as usize..=life.end as usize] {
                *at += life.size;
            }
        }
        Self { alive, chunks }
    }

    /// Bytes alive at each task, in order.
    #[must_use]
    pub fn alive(&self) -> &[u64] {
        &self.alive
    }

    /// Bytes of the buffers that hold the slabs.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.chunks
    }

    /// Most bytes alive in each of `columns` equal parts of the tasks.
    #[must_use]
    pub fn columns(&self, columns: usize) -> Vec<u64> {
        let n = self.alive.len();
        (0..columns.min(n))
            .map(|c| {
                let part = c * n / columns.min(n)..((c + 1) * n).div_ceil(columns.min(n));
                self.alive[part].iter().copied().max().unwrap_or(0)
            })
            .collect()
    }
}

/// A text drawing: time to the right, bytes upwards, the top line the bytes of the chunks.
impl fmt::Display for Occupancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let columns = self.columns(COLUMNS);
        let most = u128::from(self.chunks.max(1));
        writeln!(f, "{:>10} ┬ activation buffers", format_bytes(self.chunks))?;
        for row in (0..ROWS).rev() {
            let mut line = String::new();
            for &bytes in &columns {
                let eighths = usize::try_from(u128::from(bytes) * (ROWS as u128) * 8 / most).unwrap_or(0);
                line.push(EIGHTHS[eighths.saturating_sub(row * 8).min(8)]);
            }
            writeln!(f, "{:>10} │{line}", "")?;
        }
        write!(f, "{:>10} └{} {} tasks", "0", "─".repeat(columns.len()), self.alive.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_hold_the_most_of_their_part() {
        let life = |begin, end, size| Slab { size, begin, end, apart: Vec::new() };
        let o = Occupancy::new(&[life(0, 1, 256), life(1, 3, 512)], 1024);
        assert_eq!(o.alive(), [256, 768, 512, 512]);
        assert_eq!(o.columns(2), [768, 512]);
        assert_eq!(o.columns(100).len(), 4);
        assert!(o.to_string().contains('█'));
    }
}
