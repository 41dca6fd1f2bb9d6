// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The address of the other side: `tcp:host:port`, `unix:/path`, `vsock:cid:port` or `fd:number`.

use std::collections::BTreeSet;
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
    /// `vsock:cid:port`, a socket between a host and its guests.
    Vsock {
        /// Context id of the other machine: 2 is the host, 1 this machine. To listen, `any` or one of this machine's.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// `fd:number,...`: sockets that this process was started with. The first carries the control connection, the others
    /// carry channels. To listen, one of them may be a listening socket.
    Fd(Vec<u32>),
}

/// The context id that stands for any of this machine (`VMADDR_CID_ANY`).
const ANY_CID: u32 = u32::MAX;

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// No known kind of address in front.
    #[error(
        "{0:?} is not an address: write tcp:HOST:PORT, unix:/PATH, vsock:CID:PORT or fd:NUMBER"
    )]
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
    /// Not a context id and a port.
    #[error(
        "{0:?} is not a vsock address: write vsock:CID:PORT, two numbers below 4294967295, or vsock:any:PORT to listen"
    )]
    Vsock(String),
    /// Not a list of descriptors.
    #[error(
        "{0:?} does not name descriptors: write fd:NUMBER, or fd:NUMBER,NUMBER for the control connection and channels, each once"
    )]
    Fd(String),
}

impl Address {
    /// The name or address of the other side's host, where the address has one.
    pub(super) fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp { host, .. } => Some(host),
            Self::Unix(_) | Self::Vsock { .. } | Self::Fd(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("tcp", rest)) => tcp(text, rest),
            Some(("unix", path)) => unix(path),
            Some(("vsock", rest)) => vsock(rest).ok_or_else(|| AddressError::Vsock(text.into())),
            Some(("fd", list)) => descriptors(list).ok_or_else(|| AddressError::Fd(text.into())),
            _ => Err(AddressError::Scheme(text.into())),
        }
    }
}

fn tcp(text: &str, rest: &str) -> Result<Address, AddressError> {
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
    Ok(Address::Tcp {
        host: host.into(),
        port,
    })
}

fn unix(path: &str) -> Result<Address, AddressError> {
    match path.len() {
        0 => Err(AddressError::NoPath),
        1..=LONGEST_SOCKET_PATH => Ok(Address::Unix(path.into())),
        _ => Err(AddressError::LongPath { path: path.into() }),
    }
}

fn vsock(rest: &str) -> Option<Address> {
    let (cid, port) = rest.split_once(':')?;
    let cid = match cid {
        "any" => ANY_CID,
        _ => cid.parse().ok().filter(|cid| *cid != ANY_CID)?,
    };
    // The greatest number stands for any port, which nobody could then connect to.
    let port = port.parse().ok().filter(|port| *port != u32::MAX)?;
    Some(Address::Vsock { cid, port })
}

fn descriptors(list: &str) -> Option<Address> {
    let numbers: Vec<u32> = (list.split(','))
        .map(|number| number.parse().ok().filter(|n| i32::try_from(*n).is_ok()))
        .collect::<Option<_>>()?;
    let mut seen = BTreeSet::new();
    (numbers.iter().all(|number| seen.insert(*number))).then_some(Address::Fd(numbers))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid: ANY_CID, port } => write!(f, "vsock:any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Fd(numbers) => {
                let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
                write!(f, "fd:{}", numbers.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_printed_as_it_was_read() {
        for text in [
            "tcp:localhost:4444",
            "tcp:[::1]:0",
            "unix:/run/a b.sock",
            "vsock:2:1024",
            "vsock:any:0",
            "fd:3",
            "fd:7,5,6",
        ] {
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
        assert!(matches!(error("vhost:3"), AddressError::Scheme(_)));
        for text in [
            "vsock:3",
            "vsock:host:1",
            "vsock:4294967295:1",
            "vsock:3:4294967295",
        ] {
            assert!(matches!(error(text), AddressError::Vsock(_)), "{text}");
        }
        for text in [
            "fd:",
            "fd:three",
            "fd:3,",
            "fd:3,3",
            "fd:-1",
            "fd:4294967295",
        ] {
            assert!(matches!(error(text), AddressError::Fd(_)), "{text}");
        }
        assert_eq!(error("unix:"), AddressError::NoPath);
        let path = "/".repeat(LONGEST_SOCKET_PATH);
        assert!(format!("unix:{path}").parse::<Address>().is_ok());
        let long = error(&format!("unix:{path}x")).to_string();
        assert!(long.contains("108 bytes") && long.contains("107"), "{long}");
    }
}
