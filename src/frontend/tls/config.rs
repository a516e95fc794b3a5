//! The TLS settings of a listener.

use std::path::{Path, PathBuf};

use super::{Material, TlsError, remark, roots};
use crate::runtime::{Section, Timestamp, keyword_setting};

/// A certificate with its key, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then the intermediate ones.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Whether a client must have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nobody gets in without.
    Required,
    /// A client may do without; one that it shows must be right.
    Optional,
}

keyword_setting!(ClientCertificates, "\"required\" or \"optional\"",
    "required" => ClientCertificates::Required,
    "optional" => ClientCertificates::Optional,
);

/// TLS of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// At least one. The first is for clients that name no host, or one that no certificate is for.
    pub certificates: Vec<CertificateFiles>,
    /// Who signs the certificates of clients; `None` asks for none.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client must have one.
    pub client_certificates: ClientCertificates,
}

impl TlsConfig {
    /// Reads the TLS keys of a `[[listen]]` table, and the files that they name. `None`: plain.
    pub(in crate::frontend) fn read(table: &Section<'_>) -> Option<Self> {
        let mut certificates = Vec::new();
        if table.has("certificate") || table.has("key") {
            certificates.extend(read_pair(table));
        }
        for further in table.sections("certificates") {
            certificates.extend(read_pair(&further));
        }
        let client_ca_file: Option<PathBuf> = table.optional("client_ca_file");
        let client_certificates = table.read("client_certificates", ClientCertificates::Required);
        if let Some(path) = &client_ca_file {
            if let Err(error) = read_roots(path) {
                table.mistake("client_ca_file", error.to_string());
            }
        } else if table.has("client_certificates") {
            table.mistake("client_certificates", "needs client_ca_file: who signs them?");
        }
        if certificates.is_empty() {
            if client_ca_file.is_some() {
                table.mistake(
                    "client_ca_file",
                    "needs certificate and key: only TLS carries client certificates",
                );
            }
            return None;
        }
        Some(Self { certificates, client_ca_file, client_certificates })
    }

    /// Whether nobody gets in without a certificate of the client CA.
    pub(in crate::frontend) fn authenticates(&self) -> bool {
        self.client_ca_file.is_some() && self.client_certificates == ClientCertificates::Required
    }

    /// What is odd about the certificates but keeps nothing from working.
    pub(in crate::frontend) fn warnings(&self, now: Timestamp) -> Vec<String> {
        let certificates = Material::read(self).and_then(|material| material.certificates(self));
        // Unusable files were mistakes before.
        let certificates = certificates.iter().flat_map(|certificates| certificates.iter());
        certificates.filter_map(|certificate| remark(certificate, now)).collect()
    }
}

fn read_pair(table: &Section<'_>) -> Option<CertificateFiles> {
    let (certificate, key) = (table.required("certificate"), table.required("key"));
    let files = CertificateFiles { certificate: certificate?, key: key? };
    let config = TlsConfig {
        certificates: vec![files.clone()],
        client_ca_file: None,
        client_certificates: ClientCertificates::Required,
    };
    if let Err(error) = Material::read(&config).and_then(|material| material.certificates(&config)) {
        let key = match &error {
            TlsError::Unreadable { path, .. } | TlsError::Malformed { path, .. }
                if *path == files.certificate =>
            {
                "certificate"
            }
            _ => "key",
        };
        table.mistake(key, error.to_string());
    }
    Some(files)
}

fn read_roots(path: &Path) -> Result<(), TlsError> {
    let pem = std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })?;
    roots(path, &pem).map(drop)
}
