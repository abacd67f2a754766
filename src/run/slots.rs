//! The host's memory for slabs that leave a device and come back.

/// Slabs that wait on the host. Buffers are used again, because the first touch of fresh memory costs as much as the copy,
/// but are let go where keeping them would hold more bytes than were ever in use at once.
#[derive(Debug, Default)]
pub(super) struct HostSlots {
    waiting: Vec<Option<Vec<u8>>>,
    spare: Vec<Vec<u8>>,
    /// Bytes of the buffers handed out by [`HostSlots::room`], and the most of them so far.
    used: usize,
    most: usize,
    spare_bytes: usize,
}

impl HostSlots {
    /// Begins a run with so many slots, none of them taken.
    pub(super) fn begin(&mut self, slots: usize) {
        self.waiting = vec![None; slots];
    }

    /// An empty buffer for `size` bytes.
    pub(super) fn room(&mut self, size: u64) -> Vec<u8> {
        let fits = self.spare.iter().rposition(|b| b.capacity() as u64 == size);
        let buffer = fits.map(|at| {
            let buffer = self.spare.swap_remove(at);
            self.spare_bytes -= buffer.capacity();
            buffer
        });
        let buffer = buffer.unwrap_or_else(|| Vec::with_capacity(size as usize));
        self.used += buffer.capacity();
        self.most = self.most.max(self.used);
        self.trim();
        buffer
    }

    pub(super) fn put(&mut self, slot: u32, bytes: Vec<u8>) {
        self.waiting[slot as usize] = Some(bytes);
    }

    pub(super) fn take(&mut self, slot: u32) -> Option<Vec<u8>> {
        self.waiting[slot as usize].take()
    }

    /// Ends a restore: the bytes wait on where they come back once more.
    pub(super) fn came_back(&mut self, slot: u32, bytes: Vec<u8>, keep: bool) {
        if keep {
            self.put(slot, bytes);
        } else {
            self.give_back(bytes);
        }
    }

    pub(super) fn give_back(&mut self, mut buffer: Vec<u8>) {
        self.used = self.used.saturating_sub(buffer.capacity());
        self.spare_bytes += buffer.capacity();
        buffer.clear();
        self.spare.push(buffer);
        self.trim();
    }

    fn trim(&mut self) {
        while self.used + self.spare_bytes > self.most && !self.spare.is_empty() {
            self.spare_bytes -= self.spare.remove(0).capacity();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_buffers_are_used_again_but_never_hold_more_than_was_in_use() {
        let mut slots = HostSlots::default();
        slots.begin(3);
        let fill = |slots: &mut HostSlots, slot, size: u64| {
            let mut bytes = slots.room(size);
            bytes.resize(size as usize, 7);
            slots.put(slot, bytes);
        };
        fill(&mut slots, 0, 1000);
        fill(&mut slots, 1, 500);
        assert!(slots.take(2).is_none());
        let bytes = slots.take(0).expect("it waits");
        let address = bytes.as_ptr();
        slots.give_back(bytes);
        assert_eq!((slots.used, slots.spare_bytes, slots.most), (500, 1000, 1500));
        fill(&mut slots, 2, 1000);
        let bytes = slots.take(2).expect("it waits");
        assert_eq!((bytes.as_ptr(), slots.spare_bytes), (address, 0));
        let bytes = slots.take(1).expect("it waits");
        slots.give_back(bytes);
        fill(&mut slots, 0, 400); // of another size: the spare one goes
        assert_eq!((slots.used, slots.spare_bytes, slots.most), (1400, 0, 1500));
    }
}
