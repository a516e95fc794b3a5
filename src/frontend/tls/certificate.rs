//! Certificates: what is in them, and which one a client gets.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{CertificateFiles, TlsError};
use crate::runtime::{Timestamp, crypto_provider};

/// A certificate with its key.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) file: PathBuf,
    pub(super) expires: Timestamp,
    /// The DNS names of its subject alternative names, in lower case.
    names: Vec<String>,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads a pair of PEM texts and checks that they belong together.
    pub(super) fn parse(files: &CertificateFiles, certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let malformed = |error: &dyn std::fmt::Display| TlsError::malformed(&files.certificate, error);
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| malformed(&error))?;
        let leaf = chain.first().ok_or_else(|| malformed(&"there is no certificate in it"))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| malformed(&error))?;
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let names = dns_names(&parsed);
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::malformed(&files.key, &error))?;
        let key = CertifiedKey::from_der(chain, key, &crypto_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::Mismatch { certificate: files.certificate.clone(), key: files.key.clone() }
            }
            error => TlsError::malformed(&files.key, &error),
        })?;
        Ok(Self {
            file: files.certificate.clone(),
            expires: Timestamp::from_millis(ends.saturating_mul(1000)),
            names,
            key: Arc::new(key),
        })
    }
}

/// The certificates of one listener, as rustls asks for them.
#[derive(Debug)]
pub(super) struct Choice {
    certificates: Arc<[Certificate]>,
}

impl Choice {
    pub(super) fn new(certificates: Arc<[Certificate]>) -> Self {
        Self { certificates }
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let names = self.certificates.iter().map(|certificate| &certificate.names[..]);
        let schemes = hello.signature_schemes();
        // A name may have one certificate of each kind of key: the client takes what it can verify.
        in_order(names, name.as_deref())
            .into_iter()
            .map(|index| &self.certificates[index].key)
            .find(|key| key.key.choose_scheme(schemes).is_some())
            .cloned()
    }
}

/// The certificates in the order in which they suit a client that asks for `name`: those for exactly this name, those
/// with a wildcard for it, then all in their own order, the default first.
fn in_order<'c>(certificates: impl Iterator<Item = &'c [String]>, name: Option<&str>) -> Vec<usize> {
    let mut ranked: Vec<_> =
        certificates.enumerate().map(|(index, names)| (rank(names, name), index)).collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, index)| index).collect()
}

fn rank(names: &[String], name: Option<&str>) -> u8 {
    let Some(name) = name else { return 2 };
    // A wildcard stands for one whole label (RFC 6125, section 6.4.3).
    let parent = name.split_once('.').map(|(_, parent)| parent);
    if names.iter().any(|own| own == name) {
        0
    } else if names.iter().any(|own| own.strip_prefix("*.").is_some_and(|own| Some(own) == parent)) {
        1
    } else {
        2
    }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    alternative_names(certificate)
        .into_iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn alternative_names<'a>(certificate: &'a X509Certificate<'a>) -> Vec<&'a GeneralName<'a>> {
    match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.iter().collect(),
        Ok(None) | Err(_) => Vec::new(),
    }
}

/// The DNS names of a certificate.
pub fn leaf_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    X509Certificate::from_der(certificate).map_or_else(|_| Vec::new(), |(_, parsed)| dns_names(&parsed))
}

/// Whose certificate this is: a URI (SPIFFE), a host or a mailbox, else the subject as a whole.
pub(in crate::frontend) fn owner(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let named = alternative_names(&parsed).into_iter().find_map(|name| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) | GeneralName::RFC822Name(name) => {
            Some((*name).to_owned())
        }
        _ => None,
    });
    named.or_else(|| Some(parsed.subject().to_string()).filter(|subject| !subject.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_for_the_name_wins_then_a_wildcard_then_the_first() {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let certificates = [
            owned(&["edge.example.com"]),
            owned(&["*.example.com", "example.com"]),
            owned(&["*.example.org", "mirror.example.com"]),
        ];
        for (name, first) in [
            (None, 0),
            (Some("edge.example.com"), 0),
            (Some("other.example.com"), 1),
            (Some("example.com"), 1),
            (Some("mirror.example.com"), 2),
            (Some("a.example.org"), 2),
            (Some("a.b.example.org"), 0),
            (Some("example.org"), 0),
            (Some("localhost"), 0),
        ] {
            let order = in_order(certificates.iter().map(Vec::as_slice), name);
            assert_eq!(order[0], first, "{name:?}");
            assert_eq!(order.len(), 3, "what the client cannot verify leaves the others");
        }
    }

    #[test]
    fn the_owner_is_an_alternative_name_or_the_subject() {
        let certified = |names: &[&str], common_name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(
                names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
            )
            .unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
            params.self_signed(&key).unwrap().der().clone()
        };
        assert_eq!(owner(&certified(&["ci.example.com"], "ci")).as_deref(), Some("ci.example.com"));
        assert!(owner(&certified(&[], "ci")).unwrap().contains("CN=ci"));
    }
}
