//! Sockets that systemd has opened for this process and passes to it (`sd_listen_fds(3)`).
//!
//! They outlive the process: a restart loses no connection that waits in their queues, and a privileged port needs no
//! privileged process.

use std::io;
use std::os::fd::AsFd;

use listenfd::ListenFd;
use socket2::SockRef;

use super::address::ListenAddress;

/// A listening socket of either kind, before tokio has it.
#[derive(Debug)]
pub(super) enum RawSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// One passed socket.
#[derive(Debug)]
pub(super) struct PassedSocket {
    /// `FileDescriptorName=` of its unit.
    pub(super) name: String,
    pub(super) address: ListenAddress,
    pub(super) socket: RawSocket,
}

/// The sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct PassedSockets(pub(super) Vec<PassedSocket>);

/// A passed descriptor is nothing that pulls can be answered on.
#[derive(Debug, thiserror::Error)]
#[error("the socket {name:?} that systemd passes cannot be used: {source}")]
pub struct PassedError {
    name: String,
    source: io::Error,
}

impl PassedSockets {
    /// Takes what is there, once: before any thread is started, because it also removes the variables that announce
    /// them, lest a child takes them for its own.
    ///
    /// # Errors
    /// Names the descriptor that is no listening stream socket.
    pub fn take() -> Result<Self, PassedError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').filter(|name| !name.is_empty());
        let mut passed = ListenFd::from_env();
        let sockets = (0..passed.len()).map(|index| {
            let name = names.next().unwrap_or("unknown").to_owned();
            match socket(&mut passed, index) {
                Ok((address, socket)) => Ok(PassedSocket { name, address, socket }),
                Err(source) => Err(PassedError { name, source }),
            }
        });
        Ok(Self(sockets.collect::<Result<_, _>>()?))
    }
}

fn socket(passed: &mut ListenFd, index: usize) -> io::Result<(ListenAddress, RawSocket)> {
    let taken_twice = || io::Error::other("the descriptor was taken before");
    // A failed attempt leaves the descriptor where it is.
    if let Ok(socket) = passed.take_tcp_listener(index) {
        let socket = socket.ok_or_else(taken_twice)?;
        must_listen(&socket)?;
        return Ok((socket.local_addr()?.into(), RawSocket::Tcp(socket)));
    }
    let socket = passed.take_unix_listener(index)?.ok_or_else(taken_twice)?;
    must_listen(&socket)?;
    let path = socket.local_addr()?.as_pathname().map_or_else(Default::default, ToOwned::to_owned);
    Ok((ListenAddress::Unix(path), RawSocket::Unix(socket)))
}

fn must_listen(socket: &impl AsFd) -> io::Result<()> {
    if SockRef::from(socket).is_listener()? {
        Ok(())
    } else {
        Err(io::Error::other("it does not listen; its unit must not say Accept=yes"))
    }
}
