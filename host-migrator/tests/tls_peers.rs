// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Peers that do not fit together: each case of QEMU's list of TLS tests, and some more. The error of each side names what does
//! not fit, and the guest runs on. Strangers reach no further than their own connection.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use host_migrator::wire::{TlsConfig, TlsFileError, TlsFiles};
use host_migrator::{Address, Connection, Listener, Migration, MigrationParams, Owner};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::pki_types::ServerName;
use software_guest::certificates::{Authority, NAME};
use software_guest::memory::like;
use software_guest::waiting::{FOR_EVER, Waiting};
use software_guest::{Guest, migrate_secured};

fn load(files: &TlsFiles) -> TlsConfig {
    TlsConfig::load(files).unwrap()
}

/// Migrates between two sides, whose guest stays at the source. Returns what each side says.
fn refused(source: &TlsConfig, destination: &TlsConfig) -> (String, String) {
    let guest = Guest::with_six_pages();
    let outcome = migrate_secured(
        guest.source(),
        MigrationParams::default(),
        vec![UnixStream::pair().unwrap()],
        Arc::new(like(&guest.memory.ram)),
        source,
        destination,
    );
    assert_eq!(guest.ownership.get().owner, Owner::Here);
    assert!(!guest.machine.is_stopped() && !outcome.destination.runs);
    let (sent, received) = (outcome.sent.unwrap_err(), outcome.received.unwrap_err());
    (sent.to_string(), received.to_string())
}

#[track_caller]
fn assert_says(text: &str, words: &str) {
    assert!(text.contains(words), "{words:?} is not in {text:?}");
}

/// Connects to a destination that listens at `address` with `destination`. Returns what the source says, after which another
/// source's guest arrives there.
fn connect(
    address: &str,
    host: &str,
    source: &TlsConfig,
    destination: &TlsConfig,
    good: &TlsConfig,
) -> Result<(), String> {
    let guest = Guest::with_six_pages();
    let listener = Listener::bind(&address.parse().unwrap()).unwrap();
    let waiting = Waiting::at(listener.with_tls(destination), &guest);
    let named = match &waiting.address {
        Address::Tcp { port, .. } => format!("tcp:{host}:{port}").parse().unwrap(),
        other => other.clone(),
    };
    let connected = Connection::connect_tls(&named, FOR_EVER, source);
    let said = connected
        .as_ref()
        .map(|_| ())
        .map_err(|error| error.to_string());
    let connection = match connected {
        Ok(connection) => connection,
        Err(_) => Connection::connect_tls(&waiting.address, FOR_EVER, good).unwrap(),
    };
    waiting.receives_over(connection, &guest, MigrationParams::default());
    said
}

#[test]
fn a_destination_is_known_by_the_host_that_is_connected_to() {
    let authority = Authority::new();
    let good = authority.side();
    let local = load(&authority.files("local", &["127.0.0.1", "localhost"]));
    let named = load(&authority.files("named", &[NAME]));
    let source = load(&authority.files("source", &["source.example"]));
    let tcp = "tcp:127.0.0.1:0";
    let expecting = |name: &str| source.clone().expecting(name).unwrap();
    // The address, and a name.
    let by_address = expecting("localhost");
    connect(tcp, "127.0.0.1", &source, &local, &by_address).unwrap();
    connect(tcp, "localhost", &source, &local, &by_address).unwrap();
    // A certificate by name, with an address on the command line: which name to expect is said.
    let said = connect(tcp, "127.0.0.1", &source, &named, &good).unwrap_err();
    assert_says(&said, "is for destination.example, not for 127.0.0.1");
    assert_says(&said, "--tls-hostname");
    // The expected name wins over the host, for better and for worse.
    connect(tcp, "127.0.0.1", &expecting(NAME), &named, &good).unwrap();
    let other = expecting("other.example");
    let said = connect(tcp, "127.0.0.1", &other, &local, &by_address).unwrap_err();
    assert_says(&said, "is for 127.0.0.1, localhost, not for other.example");
}

#[test]
fn an_address_without_a_host_needs_a_name_to_expect() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("socket").display());
    let source = load(&authority.files("source", &["source.example"]));
    let said = connect(&address, "", &source, &authority.side(), &authority.side()).unwrap_err();
    assert_says(&said, "no host name");
    assert_says(&said, "--tls-hostname");
}

#[test]
fn a_certificate_of_another_ca_is_refused_on_either_side() {
    let ours = Authority::new();
    let told = "does not trust the CA of this side's certificate";
    // A CA of another name, and one that has taken the name of the trusted one.
    for (hostile, told) in [
        (Authority::called("a hostile CA"), told),
        (Authority::new(), "a signature is wrong"),
    ] {
        let files = hostile.files("impostor", &[NAME]);
        let ca = ours.ca();
        let impostor = load(&TlsFiles { ca, ..files }).expecting(NAME).unwrap();
        let (source, destination) = refused(&impostor, &ours.side());
        assert_says(&destination, "not signed by a CA that this side trusts");
        assert_says(&source, told);
        let (source, destination) = refused(&ours.side(), &impostor);
        assert_says(&source, "not signed by a CA that this side trusts");
        assert_says(&destination, told);
    }
}

#[test]
fn a_certificate_out_of_its_time_is_refused_on_either_side() {
    let authority = Authority::new();
    let good = authority.side();
    let expired = load(&authority.files_with("expired", &[NAME], |params| {
        params.not_after = date_time_ymd(2020, 1, 1);
    }));
    let early = load(&authority.files_with("early", &[NAME], |params| {
        params.not_before = date_time_ymd(2999, 1, 1);
    }));
    for (bad, words) in [(expired, "expired "), (early, "becomes valid in ")] {
        let bad = bad.expecting(NAME).unwrap();
        let told = "has expired or is not valid yet";
        let (source, destination) = refused(&bad, &good);
        assert_says(&destination, words);
        assert_says(&destination, " days");
        assert_says(&source, told);
        let (source, destination) = refused(&good, &bad);
        assert_says(&source, words);
        assert_says(&destination, told);
    }
}

#[test]
fn a_certificate_for_another_use_is_refused() {
    let authority = Authority::new();
    let only = |file: &str, usage: ExtendedKeyUsagePurpose| {
        let files = authority.files_with(file, &[NAME], |params| {
            params.extended_key_usages = vec![usage];
        });
        load(&files).expecting(NAME).unwrap()
    };
    let server = only("server", ExtendedKeyUsagePurpose::ServerAuth);
    let client = only("client", ExtendedKeyUsagePurpose::ClientAuth);
    let (source, destination) = refused(&server, &authority.side());
    assert_says(&destination, "not made for this use");
    assert_says(&source, "not made for this use");
    let (source, _) = refused(&client, &client);
    assert_says(&source, "serverAuth");
    // Each in its place.
    let guest = Guest::with_six_pages();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let waiting = Waiting::at(listener.with_tls(&server), &guest);
    let connection = Connection::connect_tls(&waiting.address, FOR_EVER, &client).unwrap();
    waiting.receives_over(connection, &guest, MigrationParams::default());
}

#[test]
fn a_source_without_a_certificate_is_refused_and_the_next_one_is_received() {
    let authority = Authority::new();
    let guest = Guest::with_six_pages();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let waiting = Waiting::at(listener.with_tls(&authority.side()), &guest);
    let mut roots = rustls::RootCertStore::empty();
    let ca = fs::read(authority.ca()).unwrap();
    roots.add(certificate(&ca)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = waiting.stranger();
    let mut stream = rustls::Stream::new(&mut client, &mut socket);
    let error = stream.read(&mut [0]).unwrap_err().to_string();
    assert_says(&error, "CertificateRequired");
    let connection = Connection::connect_tls(&waiting.address, FOR_EVER, &authority.side());
    waiting.receives_over(connection.unwrap(), &guest, MigrationParams::default());
}

fn certificate(pem: &[u8]) -> rustls::pki_types::CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(pem).unwrap()
}

#[test]
fn a_plain_source_at_a_tls_destination_is_told_that_it_speaks_tls() {
    let authority = Authority::new();
    let guest = Guest::with_six_pages();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let waiting = Waiting::at(listener.with_tls(&authority.side()), &guest);
    let plain = Connection::connect(&waiting.address, FOR_EVER).unwrap();
    let migration = Migration::start(guest.source(), MigrationParams::default(), plain);
    let (_, sent) = migration.unwrap().join();
    assert_says(
        &sent.unwrap_err().to_string(),
        "the other side speaks TLS, and this side does not",
    );
    assert!(!guest.machine.is_stopped());
    let connection = Connection::connect_tls(&waiting.address, FOR_EVER, &authority.side());
    waiting.receives_over(connection.unwrap(), &guest, MigrationParams::default());
}

#[test]
fn a_tls_source_at_a_plain_destination_is_told_that_it_does_not_speak_tls() {
    let guest = Guest::with_six_pages();
    let waiting = Waiting::for_a_guest_like(&guest);
    let side = Authority::new().side();
    let error = Connection::connect_tls(&waiting.address, FOR_EVER, &side).unwrap_err();
    assert_says(&error.to_string(), "the other side does not speak TLS");
    waiting.receives(&guest, MigrationParams::default());
}

#[test]
fn a_plain_destination_names_a_source_that_speaks_tls() {
    let (here, there) = UnixStream::pair().unwrap();
    let side = Authority::new().side();
    let source = std::thread::spawn(move || {
        let connection = Connection::try_from(here).unwrap();
        connection.with_tls(&side).unwrap_err().to_string()
    });
    let guest = Guest::with_six_pages();
    let mut machine = software_guest::machine::SoftDestination::default();
    let error = host_migrator::receive(
        there.try_into().unwrap(),
        &like(&guest.memory.ram),
        &mut machine,
        &host_migrator::OwnershipRecord::there(),
        &mut |_| (),
    );
    assert_says(
        &error.unwrap_err().to_string(),
        "the other side speaks TLS, and this side does not",
    );
    assert_says(&source.join().unwrap(), "the other side does not speak TLS");
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let authority = Authority::new();
    let good = authority.files("good", &[NAME]);
    let other = authority.files("other", &[NAME]);
    let path = |name: &str| authority.path().join(name);
    let written = |name: &str, text: &str| {
        fs::write(path(name), text).unwrap();
        fs::set_permissions(path(name), Permissions::from_mode(0o600)).unwrap();
        path(name)
    };
    let key = |key| TlsFiles {
        key,
        ..good.clone()
    };
    let error = |files: &TlsFiles| TlsConfig::load(files).unwrap_err().to_string();

    let missing = error(&key(path("missing.pem")));
    assert_says(&missing, "cannot read the key");
    assert_says(&missing, "missing.pem");
    assert_says(&error(&key(path("."))), "no plain file");
    assert_says(
        &error(&key(good.certificate.clone())),
        "may be read by others",
    );
    let copy = |name| written(name, &fs::read_to_string(&good.certificate).unwrap());
    assert_says(
        &error(&key(copy("copy.pem"))),
        "copy.pem holds no private key in PEM",
    );
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert_says(
        &error(&key(written("locked.pem", encrypted))),
        "it is encrypted",
    );
    let cut = "-----BEGIN PRIVATE KEY-----\nAAAA\n";
    assert_says(
        &error(&key(written("cut.pem", cut))),
        "a section has no end",
    );
    assert_says(
        &error(&key(other.key.clone())),
        "does not fit the certificate",
    );
    let ca = |ca| TlsFiles { ca, ..good.clone() };
    assert_says(&error(&ca(good.key.clone())), "holds no certificate in PEM");
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_says(
        &error(&ca(written("empty.pem", empty))),
        "the CA's certificate",
    );
    let certificate = written("damaged.pem", empty);
    let files = TlsFiles {
        certificate,
        ..good.clone()
    };
    assert_says(&error(&files), "damaged.pem cannot be used");
    let hostname = load(&good).expecting("a name").unwrap_err();
    assert_says(&hostname.to_string(), "neither a host name nor an address");
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let authority = Authority::new();
    let files = authority.files("side", &[NAME]);
    for mode in [0o640, 0o604, 0o666] {
        fs::set_permissions(&files.key, Permissions::from_mode(mode)).unwrap();
        let error = TlsConfig::load(&files).unwrap_err();
        assert!(
            matches!(error, TlsFileError::KeyOpenToOthers { .. }),
            "{error}"
        );
        assert_says(&error.to_string(), &format!("mode {mode:o}"));
    }
    fs::set_permissions(&files.key, Permissions::from_mode(0o400)).unwrap();
    load(&files);
}

#[test]
fn nothing_prints_a_key() {
    let authority = Authority::new();
    let files = authority.files("side", &[NAME]);
    let key = fs::read_to_string(&files.key).unwrap();
    let config = load(&files).expecting(NAME).unwrap();
    let (here, _there) = UnixStream::pair().unwrap();
    let connection = Connection::try_from(here).unwrap().awaiting_tls(&config);
    let printed = format!("{config:?} {connection:?}");
    assert!(printed.contains("TlsConfig") && printed.contains("Awaited"));
    let bytes: Vec<u8> = certificate_bytes(&key);
    let shown = format!("{bytes:?}");
    assert!(!printed.contains(shown.trim_matches(['[', ']'])));
    assert!(printed.len() < 2000, "what else does it print? {printed}");
}

/// The last bytes of a key in PEM: those of the secret.
fn certificate_bytes(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    key.secret_der()[16..24].to_vec()
}

/// A client hello, cut after `length` bytes.
fn half_a_hello(stream: &mut TcpStream, length: usize) {
    let roots = rustls::RootCertStore::empty();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    stream.write_all(&hello[..length.min(hello.len())]).unwrap();
}

#[test]
fn strangers_that_stall_or_talk_nonsense_in_the_handshake_do_not_keep_the_source_out() {
    let authority = Authority::new();
    let guest = Guest::with_six_pages();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let waiting = Waiting::at(listener.with_tls(&authority.side()), &guest);
    let mut crowd = Vec::new();
    for number in 0..120 {
        let mut stranger = waiting.stranger();
        match number % 4 {
            0 => stranger.write_all(&[b'G'; 4096]).unwrap(),
            1 => half_a_hello(&mut stranger, 50),
            // Waits for an answer, and does not go on.
            2 => half_a_hello(&mut stranger, usize::MAX),
            // A record that is announced and does not come.
            _ => stranger.write_all(&[0x16, 3, 1, 0x40, 0]).unwrap(),
        }
        crowd.push(stranger);
    }
    let connection = Connection::connect_tls(&waiting.address, FOR_EVER, &authority.side());
    waiting.receives_over(connection.unwrap(), &guest, MigrationParams::default());
    drop(crowd);
}

#[test]
fn a_thousand_strangers_do_not_keep_the_source_out() {
    let authority = Authority::new();
    let guest = Guest::with_six_pages();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let waiting = Waiting::at(listener.with_tls(&authority.side()), &guest);
    let mut crowd = VecDeque::new();
    for number in 0..1000 {
        let mut stranger = waiting.stranger();
        // The destination may have closed it already.
        let _ = stranger.set_write_timeout(Some(Duration::from_secs(10)));
        if number % 2 == 0 {
            let _ = stranger.write_all(&[0x16, 3, 1, 1]);
        }
        crowd.push_back(stranger);
        if crowd.len() > 200 {
            crowd.pop_front();
        }
    }
    let connection = Connection::connect_tls(&waiting.address, FOR_EVER, &authority.side());
    waiting.receives_over(connection.unwrap(), &guest, MigrationParams::default());
}
