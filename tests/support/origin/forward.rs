//! A forward proxy that leads every host to one address, so that names need not resolve.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;

use super::lock;
use super::port::Port;
use super::server::{Ending, Server, Service};

/// Answers CONNECT, and plain requests one per connection. Dropping it closes everything.
pub struct ForwardProxy {
    port: Port,
    ways: Arc<Ways>,
    server: Server,
}

struct Ways {
    target: SocketAddr,
    /// The `Proxy-Authorization` that is wanted, if one is.
    authorization: Option<String>,
    heads: Mutex<Vec<String>>,
}

impl ForwardProxy {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr, authorization: Option<&str>) -> Self {
        let port = Port::reserve().expect("loopback has free ports");
        let authorization = authorization.map(str::to_owned);
        let ways = Arc::new(Ways { target, authorization, heads: Mutex::default() });
        let proxy = Self { port, ways, server: Server::default() };
        proxy.server.start(&proxy.port, &proxy.ways);
        proxy
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// The head of each request, as it came.
    pub fn heads(&self) -> Vec<String> {
        lock(&self.ways.heads).clone()
    }
}

impl Service for Ways {
    async fn serve(&self, client: &mut TcpStream) -> Ending {
        match self.forward(client).await {
            Ok(()) => Ending::Close,
            Err(_) => Ending::Reset,
        }
    }
}

impl Ways {
    async fn forward(&self, client: &mut TcpStream) -> io::Result<()> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(client.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&bytes).into_owned();
        lock(&self.heads).push(head.clone());
        let given = head.lines().filter_map(|line| line.split_once(": ")).collect::<Vec<_>>();
        let given = given.iter().find(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"));
        if self.authorization.as_deref() != given.map(|(_, value)| *value) {
            let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
            return client.write_all(refusal.as_bytes()).await;
        }
        let mut target = TcpStream::connect(self.target).await?;
        if head.starts_with("CONNECT ") {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        } else {
            target.write_all(rewritten(&head).as_bytes()).await?;
        }
        copy_bidirectional(client, &mut target).await.map(|_| ())
    }
}

/// The head as its target wants it: the path alone, nothing that was for the proxy, and one request only.
fn rewritten(head: &str) -> String {
    let (method, rest) = head.split_once(" http://").expect("a plain request names its host");
    let (_, path) = rest.split_once('/').expect("a URL has a path");
    let lines = path.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("proxy-"));
    let kept = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\r\n");
    format!("{method} /{kept}\r\nConnection: close\r\n\r\n")
}
