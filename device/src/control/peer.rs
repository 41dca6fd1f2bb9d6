// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests that the other end of a connection may make, and the answers.
//!
//! Setting a hint map makes a connection the migrator's, until it says that hinting is over, or ends. There is one
//! migrator at a time. All other requests are open to every connection.

use std::os::fd::OwnedFd;
use std::time::Duration;

use spec::control::{ControlError, Header, Refusal, Reply, Request, VERSION};
use spec::hint_map::HintMap;

use super::page_map_writer::PageMapWriter;
use super::{busy, people};
use crate::balloon::Balloon;
use crate::memory::shared_map::{self, SharedMap, SharedMapError};
use crate::vhost_user::backend::Backend;

/// The other end of one connection.
#[derive(Debug, Default)]
pub(super) struct Peer {
    greeted: bool,
    /// It has set a hint map and has not sent Done since.
    migrates: bool,
    /// It has opened an epoch since then.
    hinted: bool,
}

/// The result of a request.
#[derive(Debug)]
pub(super) enum Response {
    /// This reply.
    Reply(Box<Reply>),
    /// This refusal, and the end of the connection.
    Last(Refusal, PeerError),
    /// A page map, which is sent when it has been written.
    PageMap(PageMapWriter),
}

impl From<Reply> for Response {
    fn from(reply: Reply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("{0}")]
    Frame(#[from] ControlError),
    #[error("a request with {0} file descriptors")]
    FileDescriptors(usize),
    #[error("it does not speak version {VERSION} of the control protocol")]
    Version,
}

impl Peer {
    pub(super) fn migrates(&self) -> bool {
        self.migrates
    }

    pub(super) fn has_greeted(&self) -> bool {
        self.greeted
    }

    /// The connection has ended. Returns `false` if the device is busy: call this again later.
    pub(super) fn gone(&mut self, backend: &Backend, patience: Duration) -> bool {
        if self.migrates {
            let Some(mut balloon) = backend.balloon_within(patience) else {
                return false;
            };
            balloon.migrator_gone(self.hinted);
            self.migrates = false;
        }
        true
    }

    /// The answer to a frame that came with `fds` file descriptors. Only a single one is kept.
    pub(super) fn answer(
        &mut self,
        header: &Header,
        payload: &[u8],
        (fds, fd): (usize, Option<OwnedFd>),
        backend: &Backend,
        another_migrates: bool,
    ) -> Response {
        let request = match Request::decode(header, payload) {
            Ok(request) => request,
            Err(error) => return Response::Last(Refusal::BadFrame, error.into()),
        };
        let expected = usize::from(matches!(request, Request::SetHintMap { .. }));
        if fds != expected {
            return Response::Last(Refusal::BadFrame, PeerError::FileDescriptors(fds));
        }
        let hello = matches!(request, Request::Hello { version: VERSION });
        if !hello && (!self.greeted || matches!(request, Request::Hello { .. })) {
            return Response::Last(Refusal::Version, PeerError::Version);
        }
        if let Request::PageMap(set) = request {
            return match PageMapWriter::begin(set, backend) {
                Ok(writer) => Response::PageMap(writer),
                Err(refusal) => Response::from(Reply::Refused(refusal)),
            };
        }
        let map = match (&request, fd) {
            // Without the device's lock, because the file belongs to another process.
            (Request::SetHintMap { bytes }, Some(file)) => Some(shared_map::open(file, *bytes)),
            _ => None,
        };
        let mut balloon = match busy::balloon(backend) {
            Ok(balloon) => balloon,
            Err(refusal) => return Response::from(Reply::Refused(refusal)),
        };
        let result = match request {
            Request::Hello { .. } => {
                self.greeted = true;
                Ok(Reply::Hello {
                    version: VERSION,
                    features: balloon.guest().features(),
                })
            }
            Request::SetHintMap { .. }
            | Request::Open { .. }
            | Request::Close { .. }
            | Request::Done => {
                if another_migrates {
                    Err(Refusal::Migrating)
                } else {
                    self.migrate(request, map, &mut balloon)
                }
            }
            _ => people::answer(request, &mut balloon),
        };
        result.unwrap_or_else(Reply::Refused).into()
    }

    /// The requests of migrators.
    fn migrate(
        &mut self,
        request: Request,
        map: Option<Result<HintMap<SharedMap>, SharedMapError>>,
        balloon: &mut Balloon,
    ) -> Result<Reply, Refusal> {
        match request {
            Request::SetHintMap { .. } => {
                balloon.set_hint_map(map.ok_or(Refusal::HintMap)?)?;
                self.migrates = true;
                Ok(Reply::Ok)
            }
            Request::Open { epoch } => {
                if !self.migrates {
                    return Err(Refusal::HintMap);
                }
                let command_id = balloon.open(epoch)?;
                self.hinted = true;
                Ok(Reply::Opened { command_id })
            }
            Request::Close { epoch } if self.migrates => balloon.close(epoch).map(Reply::Closed),
            Request::Close { .. } => Err(Refusal::NoSuchEpoch),
            _ => {
                if std::mem::take(&mut self.migrates) {
                    balloon.done();
                    self.hinted = false;
                }
                Ok(Reply::Ok)
            }
        }
    }
}
