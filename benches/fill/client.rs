//! A client that does nothing but receive: it must never be what is measured.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::process::now;

/// What one pull took.
pub(crate) struct Pulled {
    pub(crate) bytes: u64,
    pub(crate) first_byte: Duration,
    pub(crate) seconds: f64,
}

/// Sends a GET and drains the body. Panics on anything but a complete 200.
pub(crate) fn pull(address: SocketAddr, path: &str) -> Pulled {
    let started = now();
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the request is sent");
    let (head, mut bytes) = read_head(&mut stream);
    let first_byte = started.elapsed();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let length: u64 = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
        .expect("a Content-Length");
    let mut buffer = vec![0; 1 << 20];
    while bytes < length {
        let read = stream.read(&mut buffer).expect("the body arrives");
        assert!(read > 0, "the body breaks off at {bytes} of {length}");
        bytes += read as u64;
    }
    Pulled { bytes, first_byte, seconds: started.elapsed().as_secs_f64() }
}

/// Reads until the body begins, which has begun with at least one byte; returns the head and how
/// many bytes of the body came with it.
pub(crate) fn read_head(stream: &mut TcpStream) -> (String, u64) {
    let mut received = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let read = stream.read(&mut buffer).expect("a response");
        assert!(read > 0, "the server closed before its answer: {}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&buffer[..read]);
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n")
            && received.len() > end + 4
        {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            return (head, (received.len() - end - 4) as u64);
        }
    }
}
