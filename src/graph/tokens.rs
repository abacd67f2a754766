//! Numbers of tokens, and those that a run is given.

use std::ops::Deref;
use std::sync::Arc;

/// The place of a list of numbers in [`RunInputs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(pub usize);

/// Lists of numbers that a session is given before a run, by their [`Slot`]: what of a network
/// depends on where its crop lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunInputs(pub Vec<Vec<u32>>);

impl RunInputs {
    /// The list of a slot; none of one that is not there.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&[u32]> {
        self.0.get(slot.0).map(Vec::as_slice)
    }
}

/// Numbers of the tokens that a node picks: fixed, or those that a session begins with and that a
/// slot of [`RunInputs`] takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    numbers: Arc<[u32]>,
    slot: Option<Slot>,
}

impl Tokens {
    /// The same numbers until a run is given others.
    #[must_use]
    pub fn in_slot(mut self, slot: Slot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// The slot that other numbers come from, if there is one.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        self.slot
    }
}

impl Deref for Tokens {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.numbers
    }
}

impl<const N: usize> From<[u32; N]> for Tokens {
    fn from(numbers: [u32; N]) -> Self {
        numbers.into_iter().collect()
    }
}

impl FromIterator<u32> for Tokens {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        Self { numbers: numbers.into_iter().collect(), slot: None }
    }
}
