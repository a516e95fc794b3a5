//! Where a listener is: what `listen.address` may say.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::runtime::Setting;

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// The file of a Unix socket, an absolute path.
    Unix(PathBuf),
    /// The sockets that systemd passes under this name (`FileDescriptorName=`).
    Systemd(String),
}

const UNIX: &str = "unix:";
const SYSTEMD: &str = "systemd:";

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("the path of a Unix socket begins with /".to_owned())
            };
        }
        if let Some(name) = text.strip_prefix(SYSTEMD) {
            return if name.is_empty() {
                Err("the name of the socket is missing".to_owned())
            } else {
                Ok(Self::Systemd(name.to_owned()))
            };
        }
        text.parse().map(Self::Tcp).map_err(|error: std::net::AddrParseError| error.to_string())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            Self::Systemd(name) => write!(f, "{SYSTEMD}{name}"),
        }
    }
}

impl Setting for ListenAddress {
    const EXPECTED: &'static str = "an address with a port such as \"127.0.0.1:5050\" or \"[::1]:5050\", \
                                    \"unix:/path\" or \"systemd:NAME\"";
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// Where an edge answers pulls, as it is told to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The address that the socket really has.
    pub address: ListenAddress,
    /// Whether it speaks TLS there.
    pub tls: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match &self.address {
            ListenAddress::Tcp(address) => write!(f, "{scheme}://{address}"),
            ListenAddress::Unix(_) | ListenAddress::Systemd(_) if self.tls => {
                write!(f, "{} (https)", self.address)
            }
            ListenAddress::Unix(_) | ListenAddress::Systemd(_) => self.address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_address_reads_back_as_it_is_shown() {
        for text in ["127.0.0.1:5050", "[::]:5050", "unix:/run/edge.sock", "systemd:edge.socket"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["5050", "localhost:5050", "unix:edge.sock", "unix:", "systemd:"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
