//! What the behaviour tests share: an origin that can be told to fail, the real edge as a process, and a raw HTTP
//! client.

pub mod edge;
pub mod http;
pub mod origin;
pub mod tls;
