// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The errors between the VMM and the balloon's back end.

use std::io;
use std::path::PathBuf;

use super::queue::QueueError;
use super::state::StateError;

/// The balloon device could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// The back end's answer to a request is invalid.
    #[error("the balloon back end's answer to {request} is invalid")]
    Answer {
        /// The vhost-user request.
        request: &'static str,
    },
    /// Nobody listens on the back end's socket.
    #[error("cannot connect to the balloon back end at {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or the back end broke the protocol. The device is lost.
    #[error("the connection to the balloon back end failed at {request}: {source}")]
    Conversation {
        /// The vhost-user request.
        request: &'static str,
        /// How it broke.
        #[source]
        source: vhost::Error,
    },
    /// A state cannot be loaded into a device that a driver uses already.
    #[error("a state can only be loaded into a balloon that no driver has set up")]
    InUse,
    /// The operating system refused something.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// KVM refused something.
    #[error("KVM cannot {action}: {source}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The back end lacks a feature.
    #[error("the balloon back end does not offer {0}")]
    Lacks(&'static str),
    /// The back end was lost some time ago.
    #[error("the balloon back end is lost: {0}")]
    Lost(String),
    /// The state cannot be saved while the rings may run.
    #[error("the balloon's state cannot be saved before its rings are stopped")]
    NotStopped,
    /// A queue that the driver made ready cannot run.
    #[error("the driver's queue {index} cannot run: {source}")]
    Queue {
        /// Its number.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: QueueError,
    },
    /// The back end refused the request.
    #[error("the balloon back end refused {request}")]
    Refused {
        /// The vhost-user request.
        request: &'static str,
    },
    /// The state of another device does not fit this one.
    #[error("the balloon's state does not fit: {0}")]
    State(#[from] StateError),
    /// The back end did not answer in time. The device is lost.
    #[error("the balloon back end did not answer {request} in time")]
    Timeout {
        /// The vhost-user request.
        request: &'static str,
    },
}

impl VirtioError {
    /// Whether the connection cannot be used after this error.
    pub(super) fn loses_back_end(&self) -> bool {
        matches!(
            self,
            Self::Answer { .. } | Self::Conversation { .. } | Self::Timeout { .. }
        )
    }
}

/// Wraps an operating system's error; for `map_err`.
pub(super) fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> VirtioError {
    move |source| VirtioError::Io { action, source }
}
