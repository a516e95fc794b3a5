//! Listening sockets: made, or taken over from systemd.
//!
//! Connections inherit the options of the socket that accepts them (`TCP_NODELAY`, keep-alive), so these are set
//! once, here, and cost no system call per connection.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket as RawSocket2, TcpKeepalive, Type};
use tokio::net::{TcpListener, UnixListener};

use super::address::ListenAddress;
use super::client::Source;
use super::config::{FileMode, ListenConfig};
use super::connection::Accepted;
use super::passed::{PassedSocket, PassedSockets, RawSocket};
use super::tls::TlsError;

/// Connections that the kernel completes before they are accepted; `net.core.somaxconn` may allow fewer.
const BACKLOG: i32 = 4096;

/// What the kernel holds of an answer beyond what is on its way: a thousand slow readers would otherwise take 2 GiB, and
/// with it the kernel's memory for TCP, which slows down everybody else. A fast reader of a file may have
/// more (see [`appetite`](super::appetite)).
pub(super) const UNSENT: u32 = 256 << 10;

/// A client that vanished without a word is noticed after about two minutes, also while nothing is sent.
const KEEPALIVE_AFTER: Duration = Duration::from_mins(1);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// A listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system refuses it.
    #[error("cannot listen on {address}: {source}")]
    Refused {
        /// What was wanted.
        address: ListenAddress,
        /// Why not.
        source: io::Error,
    },
    /// Another process answers on this Unix socket.
    #[error("cannot listen on unix:{}: another process does", .0.display())]
    InUse(PathBuf),
    /// A configured name that systemd does not pass.
    #[error(
        "cannot listen on systemd:{0}: no socket of this name was passed (see FileDescriptorName= and Sockets=)"
    )]
    NotPassed(String),
    /// A passed socket that the configuration does not know.
    #[error(
        "systemd passes the socket {name:?} at {address}, which no [[listen]] names: \
         add one with address = \"systemd:{name}\""
    )]
    Unclaimed {
        /// `FileDescriptorName=`.
        name: String,
        /// Where it listens.
        address: ListenAddress,
    },
    /// TLS of a listener cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Socket {
    /// The next connection. Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                Ok(Accepted::Tcp(stream, Source::socket(peer)))
            }
            Self::Unix(socket, _) => Ok(Accepted::Unix(socket.accept().await?.0)),
        }
    }

    /// Where it really is.
    pub(super) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(socket) => Ok(socket.local_addr()?.into()),
            Self::Unix(_, file) => Ok(ListenAddress::Unix(file.path.clone())),
        }
    }
}

/// The file of a Unix socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode if this process made it. It is removed then, unless another has put its own in its place.
    own: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |file: fs::Metadata| self.own == Some((file.dev(), file.ino()));
        if self.own.is_some() && fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            // Whoever starts next replaces a file that stayed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The sockets for these listeners, each with the index of the listener that it is for.
///
/// # Errors
/// See [`BindError`].
pub(super) fn sockets(
    listeners: &[ListenConfig],
    passed: PassedSockets,
) -> Result<Vec<(Socket, usize)>, BindError> {
    let mut passed = passed.0;
    let mut sockets = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        let claimed: Vec<_> = passed.extract_if(.., |socket| is_for(socket, &listener.address)).collect();
        if claimed.is_empty() {
            sockets.push((bind(listener, listeners)?, index));
        }
        for claimed in claimed {
            let address = listener.address.clone();
            let socket = take_over(claimed).map_err(|source| BindError::Refused { address, source })?;
            sockets.push((socket, index));
        }
    }
    match passed.into_iter().next() {
        Some(PassedSocket { name, address, .. }) => Err(BindError::Unclaimed { name, address }),
        None => Ok(sockets),
    }
}

/// Every passed socket as a listener of its own, plain.
pub(super) fn as_listeners(passed: &PassedSockets) -> Vec<ListenConfig> {
    let mut names: Vec<_> = passed.0.iter().map(|socket| socket.name.clone()).collect();
    names.sort_unstable();
    // Several sockets may share a name, and one listener takes them all.
    names.dedup();
    names.into_iter().map(|name| ListenConfig::plain(ListenAddress::Systemd(name))).collect()
}

fn is_for(socket: &PassedSocket, address: &ListenAddress) -> bool {
    match address {
        ListenAddress::Systemd(name) => socket.name == *name,
        ListenAddress::Tcp(_) | ListenAddress::Unix(_) => socket.address == *address,
    }
}

fn take_over(passed: PassedSocket) -> io::Result<Socket> {
    match (passed.socket, passed.address) {
        (RawSocket::Tcp(socket), _) => {
            inheritable_options(&SockRef::from(&socket))?;
            socket.set_nonblocking(true)?;
            Ok(Socket::Tcp(TcpListener::from_std(socket)?))
        }
        (RawSocket::Unix(socket), ListenAddress::Unix(path)) => {
            socket.set_nonblocking(true)?;
            Ok(Socket::Unix(UnixListener::from_std(socket)?, SocketFile { path, own: None }))
        }
        (RawSocket::Unix(_), ListenAddress::Tcp(_) | ListenAddress::Systemd(_)) => {
            Err(io::Error::other("a Unix socket has another kind of address"))
        }
    }
}

fn bind(listener: &ListenConfig, all: &[ListenConfig]) -> Result<Socket, BindError> {
    let refused = |source| BindError::Refused { address: listener.address.clone(), source };
    match &listener.address {
        ListenAddress::Tcp(address) => {
            bind_tcp(*address, takes_ipv4_too(*address, all)).map(Socket::Tcp).map_err(refused)
        }
        ListenAddress::Unix(path) => {
            make_way(path)?;
            bind_unix(path, listener.mode).map_err(refused)
        }
        ListenAddress::Systemd(name) => Err(BindError::NotPassed(name.clone())),
    }
}

/// `[::]` takes IPv4 connections as well, whatever `net.ipv6.bindv6only` says, unless another listener is there for
/// them.
fn takes_ipv4_too(address: SocketAddr, all: &[ListenConfig]) -> bool {
    let ipv4 = ListenAddress::Tcp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()));
    let has_ipv4 = address.port() != 0 && all.iter().any(|other| other.address == ipv4);
    matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified()) && !has_ipv4
}

fn bind_tcp(address: SocketAddr, takes_ipv4_too: bool) -> io::Result<TcpListener> {
    let socket = RawSocket2::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!takes_ipv4_too)?;
    }
    // A restart must not wait for the connections of its predecessor to be forgotten.
    socket.set_reuse_address(true)?;
    inheritable_options(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn inheritable_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Removes the socket file of a process that is gone.
fn make_way(path: &Path) -> Result<(), BindError> {
    let refused = |source| BindError::Refused { address: ListenAddress::Unix(path.to_owned()), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(refused(error)),
        Ok(file) if !file.file_type().is_socket() => {
            Err(refused(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket")))
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(refused)
            }
            Ok(_) => Err(BindError::InUse(path.to_owned())),
            Err(error) => Err(refused(error)),
        },
    }
}

fn bind_unix(path: &Path, mode: FileMode) -> io::Result<Socket> {
    let socket = RawSocket2::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let own = fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))?;
    let file = SocketFile { path: path.to_owned(), own: Some(own) };
    // Nobody can connect before it listens, so nobody gets in with the permissions before these.
    fs::set_permissions(path, fs::Permissions::from_mode(mode.0))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(Socket::Unix(UnixListener::from_std(socket.into())?, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str) -> ListenConfig {
        ListenConfig::plain(address.parse::<ListenAddress>().unwrap())
    }

    #[test]
    fn the_unspecified_ipv6_address_takes_ipv4_unless_a_listener_does() {
        let alone = [listener("[::]:5050"), listener("0.0.0.0:5051")];
        let both = [listener("[::]:5050"), listener("0.0.0.0:5050")];
        let address = "[::]:5050".parse().unwrap();
        assert!(takes_ipv4_too(address, &alone));
        assert!(!takes_ipv4_too(address, &both));
        assert!(!takes_ipv4_too("[::1]:5050".parse().unwrap(), &alone));
        assert!(!takes_ipv4_too("0.0.0.0:5050".parse().unwrap(), &alone));
    }

    #[tokio::test]
    async fn accepted_connections_inherit_what_the_listener_has() {
        let socket = bind_tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let _client = tokio::net::TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let (stream, _) = socket.accept().await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
        assert_eq!(SockRef::from(&stream).tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_a_live_one_or_another_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("edge.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let unix = ListenConfig::plain(ListenAddress::Unix(path.clone()));
        let all = [unix.clone()];
        let socket = bind(&unix, &all).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(bind(&unix, &all), Err(BindError::InUse(_))));
        drop(socket);
        assert!(!path.exists(), "it is removed with its listener");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&unix, &all), Err(BindError::Refused { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_file_of_a_successor_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("edge.sock");
        let first = bind_unix(&path, FileMode(0o600)).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind_unix(&path, FileMode(0o600)).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
