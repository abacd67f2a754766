//! Staging: the mappable buffers through which bytes pass between host and device. Each direction is a ring of pieces, so
//! that the host fills or empties some while the device copies from or to others.

use super::Engine;
use super::signal::Signal;
use crate::error::{RunError, RunErrorKind};

/// Most pieces of a ring. Half of a ring is submitted at a time.
const PIECES: u64 = 4;

/// Smaller pieces than this are made only where a ring would otherwise be one piece: every submission has a fixed cost.
const SMALLEST_PIECE: u64 = 64 << 10;

/// Pieces start at multiples of this.
const GRAIN: u64 = 256;

/// Sizes of the pieces of a ring of `total` bytes; their sum is `total`.
fn piece_sizes(total: u64) -> Vec<u64> {
    let count = (total / SMALLEST_PIECE).clamp(2, PIECES);
    let piece = total / count / GRAIN * GRAIN;
    if piece == 0 {
        return vec![total];
    }
    let mut sizes = vec![piece; usize::try_from(count).unwrap_or(1)];
    if let Some(last) = sizes.last_mut() {
        *last = total - piece * (count - 1);
    }
    sizes
}

/// Which way a ring carries bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Upload,
    Download,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
        }
    }

    fn usage(self) -> wgpu::BufferUsages {
        match self {
            Self::Upload => wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            Self::Download => wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        }
    }

    fn mode(self) -> wgpu::MapMode {
        match self {
            Self::Upload => wgpu::MapMode::Write,
            Self::Download => wgpu::MapMode::Read,
        }
    }
}

/// Whose a piece is. Upload pieces rest mapped, download pieces rest unmapped.
#[derive(Debug)]
enum State {
    /// To be filled: by the host when uploading, by copies not yet submitted when downloading.
    Open,
    /// Submitted; the signal is raised when it is mapped again.
    Asked(Signal),
    /// An upload piece that is not mapped, because mapping it failed.
    Lost,
}

#[derive(Debug)]
struct Piece {
    buffer: wgpu::Buffer,
    filled: u64,
    state: State,
}

impl Piece {
    /// Whether it holds bytes that are not submitted.
    fn is_queued(&self) -> bool {
        self.filled > 0 && matches!(self.state, State::Open)
    }

    fn ask(&mut self, mode: wgpu::MapMode) {
        let signal = Signal::default();
        let set = signal.clone();
        self.buffer.map_async(mode, .., move |r| set.raise(r.is_ok()));
        self.state = State::Asked(signal);
    }
}

/// Room in a ring.
pub(super) enum Room {
    /// This many bytes at `offset` of the piece.
    Open { piece: usize, offset: u64, size: u64 },
    /// Half of the ring waits to be submitted.
    Submit,
    /// The next piece is still the device's.
    Wait,
}

/// The pieces of one direction, filled in turn.
#[derive(Debug)]
pub(super) struct Ring {
    direction: Direction,
    pieces: Vec<Piece>,
    /// The piece that is filled next.
    current: usize,
    /// The first piece whose bytes have not reached the host (downloads only).
    oldest: usize,
}

impl Ring {
    /// Creates buffers of `total` bytes together.
    pub(super) fn new(engine: &Engine, direction: Direction, total: u64) -> Self {
        let buffer = |size| {
            engine.buffer(&wgpu::BufferDescriptor {
                label: Some(direction.label()),
                size,
                usage: direction.usage(),
                mapped_at_creation: direction == Direction::Upload,
            })
        };
        let pieces = piece_sizes(total).into_iter().map(|size| Piece { buffer: buffer(size), filled: 0, state: State::Open }).collect();
        Self { direction, pieces, current: 0, oldest: 0 }
    }

    /// Number of pieces.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of all pieces.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|p| p.buffer.size()).sum()
    }

    pub(super) fn buffer(&self, piece: usize) -> &wgpu::Buffer {
        &self.pieces[piece].buffer
    }

    fn next(&self, piece: usize) -> usize {
        (piece + 1) % self.pieces.len()
    }

    /// Where the next bytes go.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn room(&mut self) -> Result<Room, RunError> {
        loop {
            let next = self.next(self.current);
            let (queued, half) = (self.pieces.iter().filter(|p| p.is_queued()).count(), self.pieces.len().div_ceil(2));
            let mode = self.direction.mode();
            let piece = &mut self.pieces[self.current];
            match &piece.state {
                State::Open if piece.filled < piece.buffer.size() => {
                    let size = piece.buffer.size() - piece.filled;
                    return Ok(Room::Open { piece: self.current, offset: piece.filled, size });
                }
                State::Open if queued >= half => return Ok(Room::Submit),
                State::Open => self.current = next,
                State::Asked(_) if self.direction == Direction::Download => return Ok(Room::Wait),
                State::Asked(signal) => match signal.is_raised() {
                    Ok(true) => (piece.filled, piece.state) = (0, State::Open),
                    Ok(false) => return Ok(Room::Wait),
                    Err(e) => {
                        piece.state = State::Lost;
                        return Err(e);
                    }
                },
                State::Lost => {
                    piece.buffer.unmap(); // wgpu remembers the mapping that failed
                    piece.ask(mode);
                }
            }
        }
    }

    /// Takes `size` bytes of the room that [`Ring::room`] found.
    pub(super) fn fill(&mut self, size: u64) {
        self.pieces[self.current].filled += size;
    }

    /// Copies bytes to the room that [`Ring::room`] found.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn stage(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        let piece = &mut self.pieces[self.current];
        let end = piece.filled + bytes.len() as u64;
        piece.buffer.get_mapped_range_mut(piece.filled..end).map_err(|e| unmapped("upload").caused_by(e))?.copy_from_slice(bytes);
        piece.filled = end.next_multiple_of(wgpu::MAP_ALIGNMENT).min(piece.buffer.size());
        Ok(())
    }

    /// Gives filled upload pieces to the device; to be called right before submitting.
    pub(super) fn release(&mut self) {
        if self.direction == Direction::Upload {
            self.pieces.iter().filter(|p| p.is_queued()).for_each(|p| p.buffer.unmap());
        }
    }

    /// Asks for the pieces back that were just submitted.
    pub(super) fn reclaim(&mut self) {
        let mode = self.direction.mode();
        let current_is_used = self.pieces[self.current].is_queued();
        self.pieces.iter_mut().filter(|p| p.is_queued()).for_each(|p| p.ask(mode));
        if current_is_used {
            self.current = self.next(self.current);
        }
    }

    /// Hands the bytes of downloaded pieces that have arrived to `sink`, in the order in which they were asked for.
    ///
    /// # Errors
    /// When the device was lost.
    pub(super) fn collect(&mut self, mut sink: impl FnMut(&[u8])) -> Result<bool, RunError> {
        let mut any = false;
        loop {
            let next = self.next(self.oldest);
            let piece = &mut self.pieces[self.oldest];
            let State::Asked(signal) = &piece.state else { return Ok(any) };
            if !signal.is_raised()? {
                return Ok(any);
            }
            match piece.buffer.get_mapped_range(0..piece.filled) {
                Ok(view) => sink(&view),
                Err(e) => return Err(unmapped("download").caused_by(e)),
            }
            piece.buffer.unmap();
            (piece.filled, piece.state) = (0, State::Open);
            self.oldest = next;
            any = true;
        }
    }

    /// Forgets the bytes in all pieces, whatever state a failed run or a dropped future left them in.
    pub(super) fn forget(&mut self) {
        for piece in &mut self.pieces {
            match (self.direction, &piece.state) {
                // the device may still copy from it: it comes back by itself
                (Direction::Upload, State::Asked(_) | State::Lost) => {}
                (Direction::Upload, State::Open) => piece.filled = 0,
                (Direction::Download, State::Asked(_)) => {
                    piece.buffer.unmap();
                    (piece.filled, piece.state) = (0, State::Open);
                }
                (Direction::Download, _) => piece.filled = 0,
            }
        }
        self.oldest = self.current;
    }
}

/// A piece that was mapped and is not any more.
fn unmapped(label: &str) -> RunError {
    RunError::new(RunErrorKind::DeviceLost, format!("the device was lost: the {label} buffer is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up() {
        assert_eq!(piece_sizes(8 << 20), [2 << 20; 4]);
        assert_eq!(piece_sizes(128 << 10), [64 << 10; 2]);
        assert_eq!(piece_sizes(200 << 10), [68_096, 68_096, 68_608]);
        assert_eq!(piece_sizes(512), [256; 2]);
        assert_eq!(piece_sizes(256), [256]);
        assert_eq!(piece_sizes(4), [4]);
        for total in (4..5000).step_by(4).chain([(1 << 20) + 4, (1 << 33) - 4]) {
            let sizes = piece_sizes(total);
            assert_eq!(sizes.iter().sum::<u64>(), total);
            assert!(sizes.iter().all(|&s| s > 0 && s % 4 == 0));
            assert!(sizes[..sizes.len() - 1].iter().all(|s| s % GRAIN == 0));
        }
    }
}
