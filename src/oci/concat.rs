//! Short texts put together on the stack: hot paths make several for every request.

use arrayvec::ArrayString;

/// The parts one after the other. The caller knows that `N` bytes hold them; a part that finds no room is left out.
pub fn concat<const N: usize>(parts: &[&str]) -> ArrayString<N> {
    let mut text = ArrayString::new();
    for part in parts {
        let pushed = text.try_push_str(part);
        debug_assert!(pushed.is_ok(), "{N} bytes do not hold {parts:?}");
    }
    text
}
