//! Which blob goes first when room is needed.

use std::fmt::Debug;

pub type Slot = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Metadata,
    Layer,
}

#[derive(Debug, Clone, Copy)]
pub struct Object {
    pub key: u64,
    pub bytes: u64,
    pub class: Class,
    pub cost: f32,
    pub dependents: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    pub frequency: u8,
    pub last_used: u32,
}

pub trait Policy: Debug + Send + Sync {
    fn insert(&mut self, slot: Slot, object: &Object, history: Option<History>, now: u32);
    fn touch(&self, slot: Slot, now: u32);
    fn update(&mut self, slot: Slot, object: &Object);
    fn remove(&mut self, slot: Slot);
    fn victim(&mut self, now: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot>;
    fn history(&self, slot: Slot) -> History;
    fn bytes_per_slot(&self) -> usize;
}

#[derive(Debug, Default)]
struct Fifo(std::collections::VecDeque<Slot>);
impl Policy for Fifo {
    fn insert(&mut self, slot: Slot, _: &Object, _: Option<History>, _: u32) {
        self.0.push_back(slot);
    }
    fn touch(&self, _: Slot, _: u32) {}
    fn update(&mut self, _: Slot, _: &Object) {}
    fn remove(&mut self, slot: Slot) {
        self.0.retain(|other| *other != slot);
    }
    fn victim(&mut self, _: u32, may_go: &mut dyn FnMut(Slot) -> bool) -> Option<Slot> {
        self.0.iter().copied().find(|slot| may_go(*slot))
    }
    fn history(&self, _: Slot) -> History {
        History { frequency: 1, last_used: 0 }
    }
    fn bytes_per_slot(&self) -> usize {
        4
    }
}
impl super::Eviction {
    /// The policy itself.
    pub(super) fn policy(self) -> Box<dyn Policy> {
        Box::new(Fifo::default())
    }
}
