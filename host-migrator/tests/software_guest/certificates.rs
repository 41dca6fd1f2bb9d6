// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Certificates for tests.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use host_migrator::wire::{TlsConfig, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ED25519,
};
use tempfile::TempDir;

/// The name that certificates of tests are for, unless they say another.
pub const NAME: &str = "destination.example";

/// A CA that signs certificates. The files last as long as it does.
pub struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        Self::called("a CA of tests")
    }

    /// The name in its certificate is `name`.
    pub fn called(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, key()).unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The CA's own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The files of a certificate for `names`.
    pub fn files(&self, file: &str, names: &[&str]) -> TlsFiles {
        self.files_with(file, names, |_| ())
    }

    /// As [`Authority::files`]; `change` makes the certificate a special one.
    pub fn files_with(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsFiles {
        let mut params = named(file, names);
        change(&mut params);
        let key = key();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| self.folder.path().join(format!("{file}-{end}.pem"));
        let files = TlsFiles {
            certificate: path("certificate"),
            key: path("key"),
            ca: self.ca(),
        };
        fs::write(&files.certificate, signed.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
        files
    }

    /// A side with a certificate for [`NAME`], which it also expects of the other.
    pub fn side(&self) -> TlsConfig {
        let files = self.files("side", &[NAME]);
        TlsConfig::load(&files).unwrap().expecting(NAME).unwrap()
    }
}

fn named(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Keys whose signatures all have the same length, so that the handshakes have, too.
fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}
