//! Class scores of all planes, in memory or in a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use super::ScorePlane;
use super::half::widened;

/// Scores of all planes of the network's grid, each plane `[C][H][W]`, all stored alike.
#[derive(Debug)]
pub(crate) struct Scores {
    depth: usize,
    classes: usize,
    /// Voxels of a plane.
    plane: usize,
    half: bool,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<Option<ScorePlane>>),
    /// One after another.
    File(Mutex<File>),
}

impl Scores {
    /// Scores of `depth` planes of so many classes and voxels; with `half` in 16 bits. They are kept in
    /// `file` if there is one.
    pub(crate) fn new(depth: usize, classes: usize, plane: usize, half: bool, file: Option<File>) -> Self {
        let place = match file {
            Some(file) => Place::File(Mutex::new(file)),
            None => Place::Memory((0..depth).map(|_| None).collect()),
        };
        Self { depth, classes, plane, half, place }
    }

    /// The bytes that all of them take.
    pub(crate) fn bytes(&self) -> u64 {
        (self.depth * self.classes * self.plane * self.element()) as u64
    }

    /// Keeps them in a file, where none is stored yet.
    pub(crate) fn keep_in(&mut self, file: File) {
        self.place = Place::File(Mutex::new(file));
    }

    fn element(&self) -> usize {
        if self.half { 2 } else { 4 }
    }

    /// Stores plane `z`.
    ///
    /// # Errors
    /// Those of writing the file.
    pub(crate) fn put(&mut self, z: usize, plane: ScorePlane) -> io::Result<()> {
        let bytes = self.classes * self.plane * self.element();
        match &mut self.place {
            Place::Memory(planes) => {
                planes[z] = Some(plane);
                Ok(())
            }
            Place::File(file) => {
                let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start((z * bytes) as u64))?;
                match &plane {
                    ScorePlane::Half(scores) => file.write_all(bytemuck::cast_slice(scores)),
                    ScorePlane::Single(scores) => file.write_all(bytemuck::cast_slice(scores)),
                }
            }
        }
    }

    /// Plane `z`, which is forgotten where it lies in memory.
    ///
    /// # Errors
    /// Those of reading the file; [`io::ErrorKind::NotFound`] if the plane was not stored.
    pub(crate) fn take(&mut self, z: usize) -> io::Result<ScorePlane> {
        let scores = self.classes * self.plane;
        let start = (z * scores * self.element()) as u64;
        match &mut self.place {
            Place::Memory(planes) => planes[z].take().ok_or_else(|| io::ErrorKind::NotFound.into()),
            Place::File(file) => {
                let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start))?;
                Ok(if self.half {
                    let mut plane = vec![half::f16::ZERO; scores];
                    file.read_exact(bytemuck::cast_slice_mut(&mut plane))?;
                    ScorePlane::Half(plane)
                } else {
                    let mut plane = vec![0.0f32; scores];
                    file.read_exact(bytemuck::cast_slice_mut(&mut plane))?;
                    ScorePlane::Single(plane)
                })
            }
        }
    }

    /// The scores of a class in all planes, `[D][H][W]`.
    ///
    /// # Errors
    /// Those of reading the file; [`io::ErrorKind::NotFound`] if a plane was not stored.
    pub(crate) fn class(&self, class: usize) -> io::Result<Vec<f32>> {
        let part = class * self.plane..(class + 1) * self.plane;
        match &self.place {
            Place::Memory(planes) => {
                let mut values = Vec::with_capacity(planes.len() * self.plane);
                for plane in planes {
                    match plane {
                        Some(ScorePlane::Half(scores)) => values.extend(scores[part.clone()].iter().map(|&v| widened(v))),
                        Some(ScorePlane::Single(scores)) => values.extend_from_slice(&scores[part.clone()]),
                        None => return Err(io::ErrorKind::NotFound.into()),
                    }
                }
                Ok(values)
            }
            Place::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let mut values = Vec::with_capacity(self.depth * self.plane);
                let mut bytes = vec![0; self.plane * self.element()];
                for z in 0..self.depth {
                    let at = (z * self.classes + class) * self.plane * self.element();
                    file.seek(SeekFrom::Start(at as u64))?;
                    file.read_exact(&mut bytes)?;
                    if self.half {
                        let halves = bytes.as_chunks::<2>().0.iter();
                        values.extend(halves.map(|&b| widened(half::f16::from_ne_bytes(b))));
                    } else {
                        values.extend(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_ne_bytes(b)));
                    }
                }
                Ok(values)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn planes(half: bool) -> Vec<ScorePlane> {
        let plane = |z: i8| {
            let values = (0..6).map(|i| f32::from(z * 6 + i) / 4.0);
            if half { ScorePlane::Half(values.map(f16::from_f32).collect()) } else { ScorePlane::Single(values.collect()) }
        };
        (0..3).map(plane).collect()
    }

    #[test]
    fn a_file_holds_what_memory_does() -> io::Result<()> {
        for half in [false, true] {
            for file in [None, Some(tempfile::tempfile()?)] {
                let mut scores = Scores::new(3, 2, 3, half, file);
                for (z, plane) in planes(half).into_iter().enumerate() {
                    scores.put(z, plane)?;
                }
                assert_eq!(scores.class(1)?, [0.75, 1.0, 1.25, 2.25, 2.5, 2.75, 3.75, 4.0, 4.25]);
                assert_eq!(scores.take(1)?, planes(half)[1]);
                scores.put(1, planes(half).remove(2))?;
                assert_eq!(scores.class(0)?[3..6], [3.0, 3.25, 3.5]);
            }
        }
        Ok(())
    }

    #[test]
    fn what_was_not_stored_is_told() -> io::Result<()> {
        for file in [None, Some(tempfile::tempfile()?)] {
            let mut scores = Scores::new(3, 2, 3, true, file);
            scores.put(0, planes(true).remove(0))?;
            assert!(scores.class(0).is_err() && scores.take(2).is_err());
        }
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn a_full_disk_is_told() -> io::Result<()> {
        let Ok(full) = File::options().write(true).read(true).open("/dev/full") else { return Ok(()) };
        let mut scores = Scores::new(3, 2, 3, true, Some(full));
        assert_eq!(scores.put(0, planes(true).remove(0)).map_err(|e| e.kind()), Err(io::ErrorKind::StorageFull));
        Ok(())
    }
}
