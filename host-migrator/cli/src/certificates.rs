// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes certificates with which TLS can be tried: a CA of their own, and one certificate for each side.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use host_migrator::wire::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Certificates that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A name is neither a host name nor an address.
    #[error("cannot make a certificate for {0:?}: {1}")]
    Name(String, #[source] rcgen::Error),
    /// Keys or signatures.
    #[error("cannot make certificates: {0}")]
    Make(#[from] rcgen::Error),
    /// A file cannot be written.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The files of both sides.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// For `lacuna receive`.
    pub destination: TlsFiles,
    /// For `lacuna send`.
    pub source: TlsFiles,
}

/// Makes new certificates in `folder`, valid from yesterday for `days` more days: the destination's for `names`, host names and
/// addresses. Nobody can sign others with their CA, because its key is not kept.
///
/// # Errors
/// [`CertificateError`] if a name cannot be in a certificate, or a file exists already or cannot be written.
pub fn make(folder: &Path, names: &[String], days: u16) -> Result<Certificates, CertificateError> {
    let write_error = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Write { path, source }
    };
    fs::create_dir_all(folder).map_err(write_error(folder))?;
    let validity = Validity::days(days);
    let mut ca = validity.params("a CA made by lacuna", &[])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let ca_file = folder.join("ca.pem");
    write(&ca_file, &ca.pem(), 0o644).map_err(write_error(&ca_file))?;
    let side = |side: &str, names: &[String], usage| {
        let mut params = validity.params(side, names)?;
        params.extended_key_usages = vec![usage];
        let files = TlsFiles {
            certificate: folder.join(format!("{side}.pem")),
            key: folder.join(format!("{side}-key.pem")),
            ca: ca_file.clone(),
        };
        let (certificate, key) = signed(params, &ca)?;
        write(&files.certificate, &certificate, 0o644).map_err(write_error(&files.certificate))?;
        write(&files.key, &key, 0o600).map_err(write_error(&files.key))?;
        Ok::<_, CertificateError>(files)
    };
    Ok(Certificates {
        destination: side("destination", names, ExtendedKeyUsagePurpose::ServerAuth)?,
        source: side("source", &[], ExtendedKeyUsagePurpose::ClientAuth)?,
    })
}

/// A certificate that `issuer` has signed, and its key; in PEM.
fn signed(
    params: CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Writes a new file.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// When certificates are valid.
#[derive(Clone, Copy)]
struct Validity {
    from: SystemTime,
    until: SystemTime,
}

impl Validity {
    /// From yesterday, because the other host's clock may be behind.
    fn days(days: u16) -> Self {
        let now = SystemTime::now();
        Self {
            from: now - DAY,
            until: now + DAY * u32::from(days),
        }
    }

    fn params(self, name: &str, names: &[String]) -> Result<CertificateParams, CertificateError> {
        let mut params = CertificateParams::default();
        for name in names {
            let one = CertificateParams::new([name.clone()])
                .map_err(|error| CertificateError::Name(name.clone(), error))?;
            params.subject_alt_names.extend(one.subject_alt_names);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = self.from.into();
        params.not_after = self.until.into();
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_migrator::wire::TlsConfig;

    #[test]
    fn what_was_made_can_be_loaded_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["host.example", "192.0.2.1", "::1"].map(String::from);
        let made = make(folder.path(), &names, 1).unwrap();
        TlsConfig::load(&made.destination).unwrap();
        TlsConfig::load(&made.source).unwrap();
        let error = make(folder.path(), &names, 1).unwrap_err().to_string();
        assert!(
            error.contains("ca.pem") && error.contains("exists"),
            "{error}"
        );
    }

    #[test]
    fn a_name_that_cannot_be_in_a_certificate_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = make(folder.path(), &["ü".to_owned()], 1).unwrap_err();
        assert!(matches!(error, CertificateError::Name(..)), "{error}");
    }
}
