//! The `Via` field: which proxies a request has come through (RFC 9110 §7.6.3).
//!
//! Edges stand behind edges, and a configuration that leads in a circle would make each wait for the other. So
//! every request to an upstream names the edges that it has come through, and an edge that finds itself among
//! them refuses.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Most proxies that a request may have come through; a longer chain is refused like a loop.
const MAX_HOPS: usize = 16;

/// Longest field in bytes that is read; a proxy's entry takes a few dozen.
const MAX_LENGTH: usize = 4096;

/// Longest name of a node in bytes.
const MAX_NODE: usize = 64;

/// The name under which an edge appears in `Via`: the field's pseudonym, a token of RFC 9110. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if !text.is_empty() && text.len() <= MAX_NODE && text.bytes().all(fits) {
            Ok(Self(text.into()))
        } else {
            Err(format!("a name is 1 to {MAX_NODE} letters, digits, '-', '.' and '_'"))
        }
    }
}

/// The proxies that a request has come through, the last one last. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// The field's value as it came; none for a request that came straight from its client.
    received: Option<Arc<str>>,
}

impl Via {
    /// Joins the values of a request's fields, in their order.
    pub fn received<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let joined = values.into_iter().map(str::trim).filter(|value| !value.is_empty()).collect::<Vec<_>>();
        Self { received: (!joined.is_empty()).then(|| joined.join(", ").into()) }
    }

    /// Whether the request must not go on through `node`: it has been there, or it has come through more
    /// proxies than anybody means to chain.
    pub fn is_loop(&self, node: &NodeId) -> bool {
        let Some(received) = &self.received else {
            return false;
        };
        received.len() > MAX_LENGTH
            || hops(received).count() >= MAX_HOPS
            || hops(received).any(|hop| received_by(hop) == Some(node.as_str()))
    }

    /// The field of the request that `node` sends on its way.
    pub fn through(&self, node: &NodeId) -> String {
        match &self.received {
            Some(received) => format!("{received}, 1.1 {node}"),
            None => format!("1.1 {node}"),
        }
    }
}

/// The entries of the list. Commas inside of comments are not told from others: such a piece names no node.
fn hops(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|hop| !hop.is_empty())
}

/// Who received the request there: the second word, after the protocol.
fn received_by(hop: &str) -> Option<&str> {
    hop.split_ascii_whitespace().nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(text: &str) -> NodeId {
        text.parse().unwrap()
    }

    #[test]
    fn a_request_that_comes_back_is_a_loop() {
        let here = node("edge-a");
        for (field, expected) in [
            (vec![], false),
            (vec!["1.1 edge-b"], false),
            (vec!["1.1 edge-a"], true),
            (vec!["2.0 edge-b, HTTP/1.1 edge-a (Apache, 1.1)"], true),
            (vec!["1.1 edge-b", "1.1 edge-a"], true),
            (vec!["1.1 edge-a-b"], false),
            (vec!["edge-a"], false),
        ] {
            assert_eq!(Via::received(field.iter().copied()).is_loop(&here), expected, "{field:?}");
        }
        assert!(Via::received([&*"1.1 x, ".repeat(16)]).is_loop(&here), "too long a chain");
        assert!(Via::received([&*"x".repeat(5000)]).is_loop(&here), "too long a field");
    }

    #[test]
    fn a_node_adds_itself_at_the_end() {
        assert_eq!(Via::default().through(&node("b")), "1.1 b");
        assert_eq!(Via::received(["1.0 a", "2 x"]).through(&node("b")), "1.0 a, 2 x, 1.1 b");
    }

    proptest! {
        #[test]
        fn whoever_was_passed_is_recognised(nodes in prop::collection::vec("[a-z0-9.-]{1,9}", 1..10)) {
            let mut via = Via::default();
            for name in &nodes {
                via = Via::received([via.through(&node(name)).as_str()]);
            }
            for name in &nodes {
                prop_assert!(via.is_loop(&node(name)));
            }
        }

        #[test]
        fn any_field_is_read_without_panic(field: String) {
            let _ = Via::received([field.as_str()]).is_loop(&node("a"));
        }
    }
}
