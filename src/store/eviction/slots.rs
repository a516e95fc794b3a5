//! One value per slot.

use super::Slot;

/// A vector by slot that grows by an eighth rather than by doubling: at a million entries the spare
/// half would cost more than the copies.
#[derive(Debug)]
pub(super) struct Slots<T>(Vec<T>);

impl<T: Default> Slots<T> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of a slot, made with all before it where there was none.
    pub(super) fn reach(&mut self, slot: Slot) -> &mut T {
        let at = slot as usize;
        if at >= self.0.len() {
            if at >= self.0.capacity() {
                let wanted = at + 1 + at / 8;
                self.0.reserve_exact(wanted - self.0.len());
            }
            self.0.resize_with(at + 1, T::default);
        }
        &mut self.0[at]
    }

    pub(super) fn peek(&self, slot: Slot) -> Option<&T> {
        self.0.get(slot as usize)
    }
}

impl<T> std::ops::Index<Slot> for Slots<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        &self.0[slot as usize]
    }
}

impl<T> std::ops::IndexMut<Slot> for Slots<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.0[slot as usize]
    }
}
