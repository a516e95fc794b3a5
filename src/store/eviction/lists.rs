//! Doubly linked lists through slots, by index.
//!
//! The links of a slot live in its entry, so a slot is on at most one list; removal from the middle
//! is O(1), which slots that leave at any time need.

use super::Slot;
use super::slots::Slots;

/// No slot. The index gives out slots from zero, so it never reaches this one.
pub(super) const NONE: Slot = Slot::MAX;

/// The neighbours of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    /// Towards the head: what came after.
    newer: Slot,
    /// Towards the tail: what came before.
    older: Slot,
}

impl Default for Links {
    fn default() -> Self {
        Self { newer: NONE, older: NONE }
    }
}

/// What has links.
pub(super) trait Linked: Default {
    fn links(&self) -> Links;
    fn links_mut(&mut self) -> &mut Links;
}

/// A queue: enters at the head, leaves at the tail.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    head: Slot,
    tail: Slot,
}

impl List {
    pub(super) const EMPTY: Self = Self { head: NONE, tail: NONE };

    pub(super) fn tail(self) -> Option<Slot> {
        (self.tail != NONE).then_some(self.tail)
    }

    pub(super) fn push<T: Linked>(&mut self, slots: &mut Slots<T>, slot: Slot) {
        *slots[slot].links_mut() = Links { newer: NONE, older: self.head };
        match self.head {
            NONE => self.tail = slot,
            head => slots[head].links_mut().newer = slot,
        }
        self.head = slot;
    }

    pub(super) fn unlink<T: Linked>(&mut self, slots: &mut Slots<T>, slot: Slot) {
        let Links { newer, older } = std::mem::take(slots[slot].links_mut());
        match newer {
            NONE => self.head = older,
            newer => slots[newer].links_mut().older = older,
        }
        match older {
            NONE => self.tail = newer,
            older => slots[older].links_mut().newer = newer,
        }
    }
}

/// What came after `slot` on its list.
pub(super) fn newer<T: Linked>(slots: &Slots<T>, slot: Slot) -> Option<Slot> {
    let newer = slots[slot].links().newer;
    (newer != NONE).then_some(newer)
}
