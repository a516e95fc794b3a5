//! The PROXY protocol, versions 1 and 2: what a load balancer says of the client before the client's own bytes.
//!
//! Pure: bytes in, header out. Written here because the crates that parse it look at the addresses of a LOCAL
//! header, which the specification says to ignore: a health check of some balancers would hang on that.
//! Addresses are all that is used; TLVs are stepped over, and so are their checksums, which a receiver may leave
//! alone (section 2.2.3). Source: haproxy.org/download/3.0/doc/proxy-protocol.txt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read. Version 1 ends within 107 bytes; the TLVs of version 2 hold at most a few
/// names and, with some balancers, a client certificate.
pub(super) const MAX_HEADER: usize = 4096;

/// The longest line of version 1, its line end included (section 2.1).
const MAX_LINE: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length.
const FIXED: usize = 16;

/// A whole header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The client; `None` when the proxy speaks for itself, or for a client without an IP address.
    pub(super) source: Option<SocketAddr>,
    /// How many bytes the header has.
    pub(super) length: usize,
}

/// These bytes are no header, whatever may follow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

/// Reads the header at the beginning of `bytes`; `None` while it is not all there.
///
/// # Errors
/// [`Malformed`]: the connection must be closed (section 2: a receiver may not guess).
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, expected)| byte == expected);
    if begins(SIGNATURE) {
        version_2(bytes)
    } else if begins(b"PROXY ") {
        version_1(bytes)
    } else {
        Err(Malformed("no PROXY header"))
    }
}

fn version_1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Ok(None) } else { Err(Malformed("a line without end")) };
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(Malformed("a line feed alone"))?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed("a line that is not ASCII"))?;
    let length = end + 1;
    let words: Vec<_> = line.split(' ').collect();
    let source = match words[..] {
        // What follows UNKNOWN must be ignored.
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", "TCP4", source, destination, source_port, destination_port] => {
            address::<Ipv4Addr>(destination, destination_port)?;
            Some(address::<Ipv4Addr>(source, source_port)?)
        }
        ["PROXY", "TCP6", source, destination, source_port, destination_port] => {
            address::<Ipv6Addr>(destination, destination_port)?;
            Some(address::<Ipv6Addr>(source, source_port)?)
        }
        _ => return Err(Malformed("a line of another form")),
    };
    Ok(Some(Header { source, length }))
}

fn address<A: std::str::FromStr + Into<IpAddr>>(ip: &str, port: &str) -> Result<SocketAddr, Malformed> {
    let ip = ip.parse::<A>().map_err(|_| Malformed("an address of another family"))?;
    let port = port.parse().map_err(|_| Malformed("no port"))?;
    Ok(SocketAddr::new(ip.into(), port))
}

fn version_2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else { return Ok(None) };
    let is_local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("another version or command")),
    };
    let described = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED + described > MAX_HEADER {
        return Err(Malformed("too long"));
    }
    let Some(described) = rest.get(..described) else { return Ok(None) };
    let length = FIXED + described.len();
    if is_local {
        return Ok(Some(Header { source: None, length }));
    }
    let source = match fixed[13] {
        0x11 | 0x12 => Some(source::<4>(described, 12)?),
        0x21 | 0x22 => Some(source::<16>(described, 36)?),
        // AF_UNSPEC, and AF_UNIX: a client on the proxy's own machine.
        0x00 | 0x31 | 0x32 => None,
        _ => return Err(Malformed("an unknown family")),
    };
    Ok(Some(Header { source, length }))
}

/// The source among `block` bytes of addresses: source, destination, and their ports.
fn source<const N: usize>(described: &[u8], block: usize) -> Result<SocketAddr, Malformed>
where
    IpAddr: From<[u8; N]>,
{
    let block = described.get(..block).ok_or(Malformed("addresses that are cut off"))?;
    let short = Malformed("addresses that are cut off");
    let (ip, rest) = block.split_first_chunk::<N>().ok_or(short)?;
    Ok(SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes([rest[N], rest[N + 1]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(source: Option<&str>, length: usize) -> Header {
        Header { source: source.map(|source| source.parse().unwrap()), length }
    }

    fn v2(command: u8, family: u8, described: &[u8]) -> Vec<u8> {
        let length = u16::try_from(described.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, described].concat()
    }

    fn v4_block() -> Vec<u8> {
        [&[203, 0, 113, 7][..], &[10, 0, 0, 1], &[0xdb, 0xbc], &[0, 80]].concat()
    }

    #[test]
    fn version_1_names_the_client() {
        let line = b"PROXY TCP4 203.0.113.7 10.0.0.1 56252 80\r\n";
        assert_eq!(parse(line), Ok(Some(read(Some("203.0.113.7:56252"), line.len()))));
        let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 56252 443\r\nGET /";
        assert_eq!(parse(line), Ok(Some(read(Some("[2001:db8::7]:56252"), line.len() - 5))));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Ok(Some(read(None, 15))));
        assert_eq!(parse(b"PROXY UNKNOWN ff:: ff:: 1 2\r\n"), Ok(Some(read(None, 29))));
    }

    #[test]
    fn version_1_of_another_form_is_malformed() {
        for line in [
            "PROXY TCP4 203.0.113.7 10.0.0.1 56252 80\n",
            "PROXY TCP4 2001:db8::7 10.0.0.1 56252 80\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56252 65536\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56252\r\n",
            "PROXY TCP4  203.0.113.7 10.0.0.1 56252 80\r\n",
            "PROXY UDP4 203.0.113.7 10.0.0.1 56252 80\r\n",
            "PROXY \r\n",
            "PROXYX TCP4",
            "GET /v2/ HTTP/1.1\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line:?}");
        }
        assert!(parse(&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat()).is_err());
    }

    #[test]
    fn version_2_names_the_client_and_steps_over_tlvs() {
        let header = v2(0x21, 0x11, &[v4_block(), vec![3, 0, 4, 1, 2, 3, 4]].concat());
        assert_eq!(parse(&header), Ok(Some(read(Some("203.0.113.7:56252"), header.len()))));
        let mut block = vec![0; 36];
        block[..2].copy_from_slice(&[0x20, 0x01]);
        block[32..34].copy_from_slice(&[0, 9]);
        let header = v2(0x21, 0x21, &block);
        assert_eq!(parse(&header), Ok(Some(read(Some("[2001::]:9"), header.len()))));
    }

    #[test]
    fn version_2_without_an_ip_address_leaves_the_connections_own() {
        for (command, family, described) in [
            (0x20, 0x00, vec![]),
            // LOCAL: the family is ignored, and so is what it would need.
            (0x20, 0x11, vec![]),
            (0x20, 0xff, vec![1, 2, 3]),
            (0x21, 0x00, vec![3, 0, 1, 7]),
            (0x21, 0x31, vec![b'/'; 216]),
        ] {
            let header = v2(command, family, &described);
            assert_eq!(parse(&header), Ok(Some(read(None, header.len()))), "{command:x} {family:x}");
        }
    }

    #[test]
    fn version_2_of_another_form_is_malformed() {
        for header in [
            v2(0x11, 0x11, &v4_block()),
            v2(0x22, 0x11, &v4_block()),
            v2(0x21, 0x41, &v4_block()),
            v2(0x21, 0x11, &v4_block()[..11]),
            v2(0x21, 0x21, &v4_block()),
            v2(0x21, 0x00, &[0; MAX_HEADER]),
        ] {
            assert!(parse(&header).is_err(), "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_within_them(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for begin in [&b""[..], b"PROXY ", SIGNATURE] {
                let bytes = [begin, &bytes].concat();
                if let Ok(Some(header)) = parse(&bytes) {
                    prop_assert!(header.length <= bytes.len());
                }
            }
        }

        #[test]
        fn a_header_in_pieces_is_the_header_as_a_whole(
            source in any::<SocketAddr>(),
            rest in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let source = SocketAddr::new(source.ip(), source.port());
            let (family, kind, octets) = match source.ip() {
                IpAddr::V4(ip) => ("TCP4", 0x11, ip.octets().to_vec()),
                IpAddr::V6(ip) => ("TCP6", 0x21, ip.octets().to_vec()),
            };
            let port = source.port();
            let ip = source.ip();
            let v1 = format!("PROXY {family} {ip} {ip} {port} {port}\r\n").into_bytes();
            let ports = port.to_be_bytes();
            let v2 = v2(0x21, kind, &[&octets[..], &octets, &ports, &ports, &rest].concat());
            for header in [v1, v2] {
                for end in 0..header.len() {
                    prop_assert_eq!(parse(&header[..end]), Ok(None));
                }
                let expected = Header { source: Some(source), length: header.len() };
                prop_assert_eq!(parse(&[&header[..], &rest].concat()), Ok(Some(expected)));
            }
        }
    }
}
