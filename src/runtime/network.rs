//! Networks as people write them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Setting;

/// A network, as in `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether an address is in it; an IPv4 address in IPv6's clothes is one.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }
}

impl Setting for Network {
    const EXPECTED: &'static str = "a network such as \"10.0.0.0/8\" or an address";
    fn from_text(text: &str) -> Result<Self, String> {
        let network = text.parse::<IpNet>().or_else(|error| match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address)),
            Err(_) => Err(error.to_string()),
        })?;
        Ok(Self(network))
    }
    fn to_text(&self) -> String {
        self.0.to_string()
    }
}
