// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Both directions of a session, on real sockets.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rcgen::generate_simple_self_signed;
use rustls::client::ClientConfig;
use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{
    CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, ProtocolVersion, RootCertStore,
    ServerConnection, SupportedCipherSuite, Tls13CipherSuite, version,
};

use super::buffer::RECORD_OVERHEAD;
use super::counts::Counts;
use super::handshake::{Client, Server};
use super::{Inbound, Outbound};
use crate::wire::reader::Reader;
use crate::wire::stop::StopFlag;
use crate::wire::wait::{TICK, try_send};
use crate::wire::writer::Writer;

/// The time limit for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// An end's socket and its two directions.
type End = (UnixStream, Box<Inbound>, Box<Outbound>);

/// Two ends whose keys are good for so many records, or as many as is safe.
fn ends(limit: Option<u64>) -> [End; 2] {
    let (client, server) = configs(limit);
    connect(&client, &server)
}

/// A handshake between the two.
fn connect(client: &Client, server: &Server) -> [End; 2] {
    let (here, there) = UnixStream::pair().unwrap();
    for end in [&here, &there] {
        end.set_read_timeout(Some(TICK)).unwrap();
        end.set_write_timeout(Some(TICK)).unwrap();
    }
    let socket = there.try_clone().unwrap().into();
    let server = server.clone();
    let accepted = thread::spawn(move || server.shake(&socket, &StopFlag::default(), PATIENCE));
    let socket = here.try_clone().unwrap().into();
    let connected = client.shake(&socket, &StopFlag::default(), PATIENCE);
    let (connected, accepted) = (connected.unwrap(), accepted.join().unwrap().unwrap());
    [
        (here, connected.0, connected.1),
        (there, accepted.0, accepted.1),
    ]
}

/// Both sides show one certificate, and trust it.
fn configs(limit: Option<u64>) -> (Client, Server) {
    let name = "peer.example";
    let made = generate_simple_self_signed([name.to_owned()]).unwrap();
    let chain = vec![made.cert.der().clone()];
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(provider(limit));
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain.clone(), key.clone_key())
        .unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let client = Client {
        config: Arc::new(client),
        name: ServerName::try_from(name).unwrap(),
        counts: Arc::new(Counts::default()),
    };
    let server = Server {
        config: Arc::new(server),
        counts: Arc::new(Counts::default()),
    };
    (client, server)
}

fn provider(limit: Option<u64>) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if let Some(limit) = limit {
        let suite = provider.cipher_suites[0].tls13().unwrap();
        let suite = Tls13CipherSuite {
            common: CipherSuiteCommon {
                confidentiality_limit: limit,
                ..suite.common
            },
            ..*suite
        };
        provider.cipher_suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))];
    }
    provider
}

/// Reader and writer of one end, and its socket.
fn directions(
    (socket, inbound, outbound): End,
    patience: Duration,
) -> (UnixStream, Reader, Writer) {
    let fd = Arc::new(socket.try_clone().unwrap().into());
    let stop = StopFlag::default();
    let reader = Reader::new(Arc::clone(&fd), stop.clone(), patience, Some(inbound));
    let writer = Writer::new(fd, stop, patience, Some(outbound));
    (socket, reader, writer)
}

fn content(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| ((at * 31) >> 3) as u8 ^ seed)
        .collect()
}

/// Moves messages of many lengths both ways at once. All bytes arrive.
fn talk(limit: Option<u64>) {
    let lengths = [1, 40, 16383, 16384, 16385, 1 << 20, 0, 300_000, 7];
    let ends = ends(limit).map(|end| directions(end, PATIENCE));
    let threads = ends.map(|(_socket, mut reader, mut writer)| {
        thread::spawn(move || {
            let writing = thread::spawn(move || {
                for (seed, length) in (0..).zip(lengths.repeat(3)) {
                    let bytes = content(length, seed);
                    let (first, second) = bytes.split_at(length / 3);
                    let mut parts = [first, second].map(IoSlice::new);
                    writer.write_all(&mut parts).unwrap();
                }
                writer
            });
            for (seed, length) in (0..).zip(lengths.repeat(3)) {
                let mut bytes = vec![0; length];
                // In pieces that are no records.
                for piece in bytes.chunks_mut(100_000) {
                    reader.read_exact(piece).unwrap();
                }
                assert!(bytes == content(length, seed), "message {seed}");
            }
            assert!(!reader.is_ready());
            (reader, writing.join().unwrap())
        })
    });
    let ended = threads.map(|thread| thread.join().unwrap());
    drop(ended);
}

#[test]
fn both_directions_carry_messages_of_any_length_at_once() {
    talk(None);
}

#[test]
fn a_resumed_session_knows_the_certificates_of_the_first() {
    // Without a certificate of the peer a handshake fails, resumed or not.
    let (client, server) = configs(None);
    for resumed in 0..3 {
        let [(.., outbound), _there] = connect(&client, &server);
        drop(outbound);
        let counted = [client.counts.handshakes(), server.counts.handshakes()];
        assert_eq!(
            counted.map(|counts| (counts.full, counts.resumed)),
            [(1, resumed); 2]
        );
    }
}

#[test]
fn new_keys_in_mid_message_lose_no_byte() {
    talk(Some(3));
}

#[test]
fn a_message_of_which_the_kernel_took_no_byte_is_not_sent_later_either() {
    let [here, there] = ends(None);
    let (near, _reader, mut writer) = directions(here, Duration::from_millis(200));
    let (mut far, _reader_there, _writer_there) = directions(there, PATIENCE);
    let near = near.into();
    let mut filler = 0;
    while let count @ 1.. = try_send(&near, &[0; 4096]) {
        filler += count;
    }
    let void = writer.write_all(&mut [IoSlice::new(b"the guest is yours")]);
    let void = void.unwrap_err();
    assert_eq!((void.written, void.source.kind()), (0, ErrorKind::TimedOut));
    // Now there is room.
    let mut arrived = vec![0; filler];
    far.read_exact(&mut arrived).unwrap();
    let after = writer.write_all(&mut [IoSlice::new(b"given up: no, it is mine")]);
    assert_eq!(after.unwrap_err().written, 0);
    assert_eq!(writer.try_write(&[7; 40]), 0);
    writer.finish();
    drop(writer);
    assert_eq!(far.read(&mut arrived).unwrap(), 0);
}

#[test]
fn what_a_failed_write_counts_is_bytes_of_its_own_records() {
    let [here, there] = ends(None);
    let (_near, _, mut writer) = directions(here, Duration::from_millis(200));
    let (far, _reader, _writer) = directions(there, PATIENCE);
    assert_eq!(writer.try_write(&[7; 40]), 40);
    let bytes = content(64 << 20, 3);
    let error = writer.write_all(&mut [IoSlice::new(&bytes)]).unwrap_err();
    let unread = rustix::io::ioctl_fionread(&far).unwrap();
    assert_eq!(error.written as u64, unread - 40 - RECORD_OVERHEAD as u64);
}

#[test]
fn an_end_with_a_close_is_told_from_one_without() {
    for closes in [true, false] {
        let [here, there] = ends(None);
        let (near, _, mut writer) = directions(here, PATIENCE);
        let (_far, mut reader, _) = directions(there, PATIENCE);
        writer.write_all(&mut [IoSlice::new(b"last")]).unwrap();
        if closes {
            writer.finish();
        } else {
            near.shutdown(std::net::Shutdown::Both).unwrap();
        }
        let mut last = [0; 4];
        reader.read_exact(&mut last).unwrap();
        assert!(&last == b"last" && reader.is_ready());
        let error = reader.read_exact(&mut last).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        let without = error.to_string().contains("without a TLS close");
        assert_eq!(without, !closes, "{error}");
    }
}

#[test]
fn a_piece_of_a_handshake_message_ends_both_directions_with_an_error() {
    let (client, server) = configs(None);
    let mut config = ServerConfig::clone(&server.config);
    config.enable_secret_extraction = true;
    let (here, mut there) = UnixStream::pair().unwrap();
    here.set_read_timeout(Some(TICK)).unwrap();
    let (tell, is_open) = channel();
    // A peer that breaks the rules needs the keys of the session.
    let peer = thread::spawn(move || {
        let mut session = ServerConnection::new(Arc::new(config)).unwrap();
        while session.is_handshaking() || session.wants_write() {
            session.complete_io(&mut there).unwrap();
        }
        let suite = session.negotiated_cipher_suite().unwrap().tls13().unwrap();
        let (sequence, secrets) = session.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
            panic!("another cipher")
        };
        // A key update without its last bytes.
        let piece = OutboundPlainMessage {
            typ: ContentType::Handshake,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(&[24, 0, 0]),
        };
        let mut encrypter = suite.aead_alg.encrypter(key, iv);
        let record = encrypter.encrypt(piece, sequence).unwrap().encode();
        is_open.recv().unwrap();
        there.write_all(&record).unwrap();
        there
    });
    let socket = here.try_clone().unwrap().into();
    let (inbound, outbound) = client
        .shake(&socket, &StopFlag::default(), PATIENCE)
        .unwrap();
    tell.send(()).unwrap();
    let _there = peer.join().unwrap();
    let (_, mut reader, mut writer) = directions((here, inbound, outbound), PATIENCE);
    assert!(reader.is_ready());
    let error = reader.read_exact(&mut [0]).unwrap_err();
    assert!(error.to_string().contains("in pieces"), "{error}");
    let error = writer.write_all(&mut [IoSlice::new(b"anything")]);
    assert_eq!(error.unwrap_err().written, 0);
    assert_eq!(writer.try_write(b"anything"), 0);
    writer.finish();
}
