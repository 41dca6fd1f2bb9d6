// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of TLS.

use std::path::PathBuf;

use clap::Args;
use host_migrator::wire::{TlsConfig, TlsFileError, TlsFiles};

/// Where the help lists these flags.
pub(super) const HEADING: &str = "TLS";

/// This side's certificate, and whom it trusts. All three flags together switch TLS on.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsArgs {
    /// Encrypt the migration with TLS 1.3, and show this certificate (PEM), followed by those of the CAs between it and the CA that
    /// the other side trusts. Both sides need TLS flags; `lacuna generate certificates` makes files to try it
    #[arg(long, value_name = "FILE", help_heading = HEADING, requires_all = ["tls_key", "tls_ca"])]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM, not encrypted). It is refused if it is this user's and others may read it
    #[arg(long, value_name = "FILE", help_heading = HEADING, requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// The CA, or several (PEM): the other side's certificate must be signed by one of them
    #[arg(long, value_name = "FILE", help_heading = HEADING, requires = "tls_certificate")]
    pub tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// Reads the files; `None` without the flags.
    ///
    /// # Errors
    /// [`TlsFileError`] if they cannot be used.
    pub fn load(&self) -> Result<Option<TlsConfig>, TlsFileError> {
        let (Some(certificate), Some(key), Some(ca)) =
            (&self.tls_certificate, &self.tls_key, &self.tls_ca)
        else {
            return Ok(None);
        };
        TlsConfig::load(&TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            ca: ca.clone(),
        })
        .map(Some)
    }
}
