// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes wrong between two sides that speak TLS, in words that say what to change.

use std::io::{self, ErrorKind};
use std::time::Duration;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// Why a TLS connection is refused or has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The peer's certificate is for other names than the one that it was connected to by.
    #[error(
        "the other side's certificate is for {}, not for {expected}: if it is the right host, expect one of its names (--tls-hostname)",
        list(names)
    )]
    Name {
        /// The name or address that was expected.
        expected: String,
        /// The names and addresses in the certificate.
        names: Vec<String>,
    },
    /// No CA that is trusted here has signed the peer's certificate.
    #[error("the other side's certificate is not signed by a CA that this side trusts (--tls-ca)")]
    UnknownCa,
    /// The peer's certificate is too old.
    #[error("the other side's certificate expired {} ago, says this side's clock", words(*.0))]
    Expired(Duration),
    /// The peer's certificate is not valid yet.
    #[error("the other side's certificate becomes valid in {}, says this side's clock", words(*.0))]
    NotYetValid(Duration),
    /// The peer's certificate is made for something else.
    #[error(
        "the other side's certificate is not made for this use: a destination's needs the extended key usage serverAuth, a source's clientAuth"
    )]
    Purpose,
    /// Something else is wrong with the peer's certificate.
    #[error("the other side's certificate is not accepted: {0}")]
    Certificate(String),
    /// The peer has shown no certificate.
    #[error("the other side has shown no certificate, and this side wants one")]
    NoCertificate,
    /// The peer refuses this side's certificate, or the connection.
    #[error("the other side refuses the TLS connection: {reason} (alert {alert})")]
    Refused {
        /// What that means.
        reason: &'static str,
        /// What it says.
        alert: String,
    },
    /// The peer's first bytes are no TLS.
    #[error("the other side does not speak TLS: give certificates to both sides, or to neither")]
    NotSpoken,
    /// The peer speaks TLS, and this side does not.
    #[error(
        "the other side speaks TLS, and this side does not: give certificates to both sides, or to neither"
    )]
    NotExpected,
    /// The peer speaks other versions or algorithms only.
    #[error("the other side does not speak TLS 1.3 with algorithms that this side has: {0}")]
    Incompatible(String),
    /// The connection ended, and the peer has not said so.
    #[error(
        "the connection ended without a TLS close: the other side was killed, or the connection was cut"
    )]
    Cut,
    /// The peer hung up in the middle of the handshake.
    #[error(
        "the other side has hung up in the TLS handshake: its log may say why, or it does not speak TLS"
    )]
    HungUp,
    /// A message of the handshake without an end.
    #[error("the other side's TLS handshake is longer than any certificate needs")]
    TooLong,
    /// A record was changed on its way.
    #[error("a TLS record is damaged or forged")]
    Damaged,
    /// There is no name that the peer's certificate could be for.
    #[error(
        "this address has no host name that the other side's certificate could be for: say which name to expect (--tls-hostname)"
    )]
    NoName,
    /// Any other error.
    #[error("TLS: {0}")]
    Other(String),
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::Cut | TlsError::HungUp => ErrorKind::UnexpectedEof,
            TlsError::NoName => ErrorKind::InvalidInput,
            _ => ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Says what rustls's error means for the two sides.
pub(super) fn explain(error: Error) -> TlsError {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::NoCertificatesPresented => TlsError::NoCertificate,
        Error::AlertReceived(alert) => TlsError::Refused {
            reason: reason(alert),
            alert: format!("{alert:?}"),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => TlsError::NotSpoken,
        Error::DecryptError => TlsError::Damaged,
        Error::PeerIncompatible(why) => TlsError::Incompatible(format!("{why:?}")),
        error => TlsError::Other(error.to_string()),
    }
}

fn of_certificate(error: CertificateError) -> TlsError {
    match error {
        // A bad signature: another CA has the name of one that is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsError::UnknownCa,
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => TlsError::Name {
            expected: name(&expected),
            names: presented.iter().map(|name| bare(name)).collect(),
        },
        CertificateError::ExpiredContext { time, not_after } => {
            TlsError::Expired(between(not_after, time))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            TlsError::NotYetValid(between(time, not_before))
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            TlsError::Purpose
        }
        error => TlsError::Certificate(error.to_string()),
    }
}

/// Whether `bytes` begin as a TLS record does. No greeting and no header of a migration begins so.
pub(in crate::wire) fn is_tls_record(bytes: &[u8]) -> bool {
    matches!(bytes, [0x14..=0x17, 3, 0..=4, ..])
}

fn name(name: &ServerName<'_>) -> String {
    name.to_str().into_owned()
}

/// The name in rustls's `DnsName("host")` or `IpAddress(1.2.3.4)`.
fn bare(name: &str) -> String {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"').to_owned()
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no name at all".to_owned();
    }
    names.join(", ")
}

fn between(first: UnixTime, second: UnixTime) -> Duration {
    Duration::from_secs(second.as_secs().saturating_sub(first.as_secs()))
}

/// A duration in its greatest whole unit.
fn words(duration: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [
        (86400, "day"),
        (3600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let seconds = duration.as_secs();
    let (length, unit) = (UNITS.into_iter())
        .find(|(length, _)| seconds >= *length)
        .unwrap_or((1, "second"));
    let count = seconds / length;
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

fn reason(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => "it does not trust the CA of this side's certificate",
        AlertDescription::DecryptError => {
            "a signature is wrong, as when its CA and that of this side's certificate have one name and two keys"
        }
        AlertDescription::CertificateExpired => {
            "its clock says that this side's certificate has expired or is not valid yet"
        }
        AlertDescription::BadCertificate => {
            "this side's certificate is damaged, or for another name than the one that it connected to"
        }
        AlertDescription::CertificateRequired => "it wants a certificate of this side",
        AlertDescription::UnsupportedCertificate => {
            "this side's certificate is not made for this use (extended key usage)"
        }
        AlertDescription::CertificateRevoked => "this side's certificate was revoked",
        AlertDescription::CertificateUnknown => "it does not accept this side's certificate",
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "it has no version or algorithm in common with this side"
        }
        AlertDescription::BadRecordMac => "a record was damaged on its way",
        _ => "it does not say more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_told_with_the_names_that_would_do() {
        let error = explain(Error::InvalidCertificate(
            CertificateError::NotValidForNameContext {
                expected: ServerName::try_from("192.0.2.1").unwrap(),
                presented: vec![r#"DnsName("one.example")"#.into(), "IpAddress(::1)".into()],
            },
        ));
        let text = error.to_string();
        assert!(
            text.contains("for one.example, ::1, not for 192.0.2.1"),
            "{text}"
        );
        assert!(text.contains("--tls-hostname"), "{text}");
    }

    #[test]
    fn a_time_is_told_in_its_greatest_unit() {
        let told =
            [0, 1, 59, 60, 7200, 86400 * 3].map(|seconds| words(Duration::from_secs(seconds)));
        let expected = [
            "0 seconds",
            "1 second",
            "59 seconds",
            "1 minute",
            "2 hours",
            "3 days",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn no_greeting_looks_like_a_tls_record() {
        assert!(!is_tls_record(b"LACUNA\r\n"));
        assert!(!is_tls_record(b"LACUCH\r\n"));
        assert!(is_tls_record(&[0x16, 3, 1, 2, 0]));
        assert!(!is_tls_record(&[0x16, 3]));
    }
}
