// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The address of the other side: `tcp:host:port` or `unix:/path`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The most bytes of a socket's path: the kernel's limit without the final zero.
pub const LONGEST_SOCKET_PATH: usize = 107;

/// An address to listen on or to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// `tcp:host:port`; an IPv6 address stands in brackets.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port; 0 lets the system choose one to listen on.
        port: u16,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Neither `tcp:` nor `unix:` in front.
    #[error("{0:?} is not an address: write tcp:HOST:PORT or unix:/PATH")]
    Scheme(String),
    /// No port after the host.
    #[error("{0:?} has no port: write tcp:HOST:PORT")]
    NoPort(String),
    /// The port is not a number from 0 to 65535.
    #[error("{0:?} is not a port: it must be a number from 0 to 65535")]
    Port(String),
    /// Nothing where the host should be.
    #[error("{0:?} has no host: write tcp:HOST:PORT")]
    NoHost(String),
    /// An IPv6 address without brackets.
    #[error("{0:?} is ambiguous: write an IPv6 address in brackets, tcp:[ADDRESS]:PORT")]
    Brackets(String),
    /// The path is too long for a socket.
    #[error("{path:?} has {length} bytes, and a socket's path has at most {LONGEST_SOCKET_PATH}: take a shorter one", length = .path.as_os_str().len())]
    LongPath {
        /// The path.
        path: PathBuf,
    },
    /// Nothing where the path should be.
    #[error("\"unix:\" has no path: write unix:/PATH")]
    NoPath,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(AddressError::NoPath),
                1..=LONGEST_SOCKET_PATH => Ok(Self::Unix(path.into())),
                _ => Err(AddressError::LongPath { path: path.into() }),
            };
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return Err(AddressError::Scheme(text.into()));
        };
        let (host, port) = rest
            .rsplit_once(':')
            .ok_or_else(|| AddressError::NoPort(text.into()))?;
        let port = port.parse().map_err(|_| AddressError::Port(port.into()))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bare {
            None if host.contains(':') => return Err(AddressError::Brackets(text.into())),
            _ => bare.unwrap_or(host),
        };
        if host.is_empty() {
            return Err(AddressError::NoHost(text.into()));
        }
        Ok(Self::Tcp {
            host: host.into(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_printed_as_it_was_read() {
        for text in ["tcp:localhost:4444", "tcp:[::1]:0", "unix:/run/a b.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn text_that_is_not_an_address_gets_an_error_that_says_what_to_write() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        assert!(matches!(error("localhost:4444"), AddressError::Scheme(_)));
        assert!(matches!(error("tcp:localhost"), AddressError::NoPort(_)));
        assert!(matches!(error("tcp:localhost:"), AddressError::Port(_)));
        assert!(matches!(
            error("tcp:localhost:65536"),
            AddressError::Port(_)
        ));
        assert!(matches!(error("tcp::1"), AddressError::NoHost(_)));
        assert!(matches!(error("tcp:::1:4444"), AddressError::Brackets(_)));
        assert_eq!(error("unix:"), AddressError::NoPath);
        let path = "/".repeat(LONGEST_SOCKET_PATH);
        assert!(format!("unix:{path}").parse::<Address>().is_ok());
        let long = error(&format!("unix:{path}x")).to_string();
        assert!(long.contains("108 bytes") && long.contains("107"), "{long}");
    }
}
