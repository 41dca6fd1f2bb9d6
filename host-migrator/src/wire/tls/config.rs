// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Certificates of this side, and whom it trusts.

use std::fmt;
use std::sync::Arc;

use rustls::client::{ClientConfig, Resumption, TicketRequest};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConfig, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{CipherSuite, version};

use super::counts::{Counts, Handshakes};
use super::files::{TlsFileError, TlsFiles};
use super::handshake::{Client, Server};
use super::tickets::{TICKETS, Tickets};

/// How many sessions a destination remembers, so that channels can resume them: those of a few control connections.
const SESSIONS: usize = 4 * TICKETS;

/// TLS 1.3 with certificates on both sides: each shows one, and accepts a peer that shows one of its CA.
///
/// A source connects with it ([`Connection::connect_tls`](crate::Connection::connect_tls)), and checks that the
/// destination's certificate is for the host that it connects to, or for the name of [`TlsConfig::expecting`]. A
/// destination listens with it ([`Listener::with_tls`](crate::Listener::with_tls)). Of a source it checks only that the
/// CA has signed its certificate.
///
/// The clones are one configuration: they count their handshakes together.
#[derive(Clone)]
pub struct TlsConfig {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    expected: Option<ServerName<'static>>,
    counts: Arc<Counts>,
}

impl TlsConfig {
    /// Reads `files`. The key must be readable for this user only, or be another user's and closed to others.
    ///
    /// # Errors
    /// [`TlsFileError`] names the file and what is wrong with it.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFileError> {
        let provider = Arc::new(provider());
        let roots = Arc::new(files.roots()?);
        let chain = files.chain()?;
        let key = files.private_key()?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| files.unusable(error))?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| files.unusable(error))?;
        client.send_ticket_request = Some(TicketRequest {
            new_session_count: TICKETS as u8,
            resumption_count: 0,
        });
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| files.unusable_ca(&error))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| files.unusable(error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| files.unusable(error))?;
        server.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        server.max_tls13_tickets = TICKETS;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            expected: None,
            counts: Arc::default(),
        })
    }

    /// Expects the peer's certificate to be for `hostname`, a name or an address, whatever address is connected to.
    ///
    /// # Errors
    /// [`TlsFileError::Hostname`] if it is neither.
    pub fn expecting(self, hostname: &str) -> Result<Self, TlsFileError> {
        let name = ServerName::try_from(hostname.to_owned())
            .map_err(|_| TlsFileError::Hostname(hostname.to_owned()))?;
        Ok(Self {
            expected: Some(name),
            ..self
        })
    }

    /// How many handshakes were completed with this configuration and its clones.
    pub fn handshakes(&self) -> Handshakes {
        self.counts.handshakes()
    }

    /// The connecting end of a control connection to `host`, unless another name is expected. Channels resume its session.
    /// `None` if there is no name to expect.
    pub(in crate::wire) fn client(&self, host: Option<&str>) -> Option<Client> {
        let host = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
        let mut config = ClientConfig::clone(&self.client);
        config.resumption = Resumption::store(Arc::new(Tickets::default()));
        Some(Client {
            config: Arc::new(config),
            name: self.expected.clone().or(host)?,
            counts: Arc::clone(&self.counts),
        })
    }

    /// The accepting end of a connection.
    pub(in crate::wire) fn server(&self) -> Server {
        Server {
            config: Arc::clone(&self.server),
            counts: Arc::clone(&self.counts),
        }
    }
}

impl fmt::Debug for TlsConfig {
    /// Shows no key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("expected", &self.expected)
            .field("handshakes", &self.handshakes())
            .finish_non_exhaustive()
    }
}

/// The algorithms, the fastest of the safe ones first: AES-128 on processors that have instructions for it.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    (provider.cipher_suites)
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}
