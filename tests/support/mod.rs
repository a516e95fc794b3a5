//! What the behaviour tests share: an origin that can be told to fail, and a raw HTTP client.

pub mod http;
pub mod origin;
