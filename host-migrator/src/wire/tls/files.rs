// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads certificates and keys from files.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The most bytes of a file with certificates or a key.
const LARGEST: u64 = 1 << 20;

/// Files with what this side shows, and whom it trusts; all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// This side's certificate, followed by those of the CAs between it and the peer's trusted CA.
    pub certificate: PathBuf,
    /// The private key of the certificate, not encrypted.
    pub key: PathBuf,
    /// The CAs, one of which must have signed the peer's certificate.
    pub ca: PathBuf,
}

/// Why certificates and keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFileError {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read the key.
    #[error("the key {} may be read by others (mode {mode:03o}): take that right away (chmod 600)", path.display())]
    KeyOpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file has no certificate or key.
    #[error("{} holds no {what} in PEM{advice}", path.display())]
    Nothing {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What may help.
        advice: &'static str,
    },
    /// A file is no PEM.
    #[error("{} is no PEM with {what}: {reason}", path.display())]
    Pem {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Where it is wrong. The text does not show what the file holds.
        reason: &'static str,
    },
    /// The key is another certificate's.
    #[error("the key {} does not fit the certificate {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate, key or CA that cannot be used.
    #[error("{what} {} cannot be used: {reason}", path.display())]
    Unusable {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The expected name is neither a host name nor an address.
    #[error("{0:?} is neither a host name nor an address")]
    Hostname(String),
}

const CERTIFICATE: &str = "the certificate";
const KEY: &str = "the key";
const CA: &str = "the CA's certificate";

impl TlsFiles {
    pub(super) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        certificates(&self.certificate, CERTIFICATE)
    }

    /// Reads the key, if only its owner and those whom its owner trusts may read it.
    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsFileError> {
        let bytes = read(&self.key, KEY, check_mode)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
            let advice = match error {
                pem::Error::NoItemsFound if holds(&bytes, b"BEGIN ENCRYPTED PRIVATE KEY") => {
                    ": it is encrypted, and has to be decrypted first"
                }
                _ => "",
            };
            pem_error(error, "private key", &self.key, advice)
        })
    }

    pub(super) fn roots(&self) -> Result<RootCertStore, TlsFileError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca, CA)? {
            roots
                .add(certificate)
                .map_err(|error| self.unusable_ca(&error))?;
        }
        Ok(roots)
    }

    /// What rustls says of certificate and key together.
    pub(super) fn unusable(&self, error: rustls::Error) -> TlsFileError {
        let (what, path) = match error {
            rustls::Error::InconsistentKeys(_) => {
                return TlsFileError::KeyMismatch {
                    certificate: self.certificate.clone(),
                    key: self.key.clone(),
                };
            }
            rustls::Error::InvalidCertificate(_) => (CERTIFICATE, &self.certificate),
            _ => (KEY, &self.key),
        };
        TlsFileError::Unusable {
            what,
            path: path.clone(),
            reason: error.to_string(),
        }
    }

    pub(super) fn unusable_ca(&self, error: &dyn fmt::Display) -> TlsFileError {
        TlsFileError::Unusable {
            what: CA,
            path: self.ca.clone(),
            reason: error.to_string(),
        }
    }
}

fn certificates(
    path: &Path,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let bytes = read(path, what, |_, _| Ok(()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(pem_error(pem::Error::NoItemsFound, "certificate", path, "")),
        Err(error) => Err(pem_error(error, "certificate", path, "")),
    }
}

fn read(
    path: &Path,
    what: &'static str,
    check: impl FnOnce(&Path, &fs::Metadata) -> Result<(), TlsFileError>,
) -> Result<Vec<u8>, TlsFileError> {
    let failed = |source| TlsFileError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    // A folder or a pipe cannot hold it, and a pipe could be waited for without an end.
    let found = fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        return Err(failed(io::Error::other("it is no plain file")));
    }
    let file = File::open(path).map_err(failed)?;
    check(path, &file.metadata().map_err(failed)?)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(failed(io::Error::other("it has more than 1 MiB")));
    }
    Ok(bytes)
}

/// As ssh does it: nobody else may read a key of this user. A key of another user (root's, say) may be readable for this
/// user's group, but never for everybody.
fn check_mode(path: &Path, file: &fs::Metadata) -> Result<(), TlsFileError> {
    let mode = file.mode() & 0o777;
    let is_ours = file.uid() == rustix::process::geteuid().as_raw();
    let forbidden = if is_ours { 0o077 } else { 0o007 };
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(TlsFileError::KeyOpenToOthers {
        path: path.to_owned(),
        mode,
    })
}

fn pem_error(
    error: pem::Error,
    what: &'static str,
    path: &Path,
    advice: &'static str,
) -> TlsFileError {
    let path = path.to_owned();
    let reason = match error {
        pem::Error::NoItemsFound => return TlsFileError::Nothing { what, path, advice },
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "the first line of a section is wrong",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it cannot be read",
    };
    TlsFileError::Pem { what, path, reason }
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
