// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to a balloon device, and the error messages for its refusals.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use host_migrator::{ControlClient, HintError};
use spec::balloon::feature;
use spec::control::{BalloonStatus, HintState, PageSet, Refusal, Reply, Request, Statistics};

use super::BalloonError;
use super::args::DeviceArgs;

/// How long an answer may take. Only the map of a very large guest takes a noticeable time.
const PATIENCE: Duration = Duration::from_secs(20);

/// The largest map that is read: of 32 TiB of guest memory.
const MOST_MAP_BYTES: u64 = 1 << 30;

/// A device that has said hello.
pub(super) struct Device {
    client: ControlClient,
    path: PathBuf,
}

impl Device {
    pub(super) fn connect(args: &DeviceArgs) -> Result<Self, BalloonError> {
        let path = args.control_socket.clone();
        match ControlClient::connect(&path, PATIENCE) {
            Ok(client) => Ok(Self { client, path }),
            Err(HintError::Io(source)) => Err(BalloonError::Connect { path, source }),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn status(&mut self) -> Result<BalloonStatus, BalloonError> {
        match self.ask(Request::BalloonStatus)? {
            Reply::BalloonStatus(status) => Ok(status),
            other => Err(HintError::unexpected(Request::BalloonStatus, other).into()),
        }
    }

    pub(super) fn set_target(&mut self, pages: u32) -> Result<(), BalloonError> {
        self.tell(Request::SetTarget { pages })
    }

    pub(super) fn set_statistics_interval(
        &mut self,
        interval: Duration,
    ) -> Result<(), BalloonError> {
        let milliseconds = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.tell(Request::SetStatisticsInterval { milliseconds })
    }

    /// The newest statistics, if there are any.
    pub(super) fn statistics(&mut self) -> Result<Option<Statistics>, BalloonError> {
        match self.client.ask(Request::Statistics, None) {
            Ok(Reply::Statistics(statistics)) => Ok(Some(statistics)),
            Err(HintError::Refused(Refusal::NoStatistics)) => Ok(None),
            Ok(other) => Err(HintError::unexpected(Request::Statistics, other).into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts, stops or shows a round of hints.
    pub(super) fn hints(&mut self, request: Request) -> Result<HintState, BalloonError> {
        match self.ask(request)? {
            Reply::HintState(state) => Ok(state),
            other => Err(HintError::unexpected(request, other).into()),
        }
    }

    /// The bytes of a [`spec::page_map::PageMap`], or `None` if nothing has been hinted.
    pub(super) fn page_map(&mut self, set: PageSet) -> Result<Option<Vec<u8>>, BalloonError> {
        let request = Request::PageMap(set);
        let (reply, file) = match self.client.ask_for_file(request) {
            Ok(answer) => answer,
            Err(HintError::Refused(Refusal::NoMap)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (Reply::PageMap { bytes }, Some(file)) = (reply, file) else {
            return Err(HintError::unexpected(request, reply).into());
        };
        if bytes > MOST_MAP_BYTES {
            let text = format!("its page map has {bytes} bytes, more than {MOST_MAP_BYTES}");
            return Err(HintError::Protocol(text).into());
        }
        let mut map = Vec::new();
        // No more than was announced.
        let read = File::from(file).take(bytes).read_to_end(&mut map);
        read.map_err(HintError::from)?;
        Ok(Some(map))
    }

    fn tell(&mut self, request: Request) -> Result<(), BalloonError> {
        match self.ask(request)? {
            Reply::Ok => Ok(()),
            other => Err(HintError::unexpected(request, other).into()),
        }
    }

    /// Asks, and explains a refusal by the device's status where that says more than the refusal.
    fn ask(&mut self, request: Request) -> Result<Reply, BalloonError> {
        match self.client.ask(request, None) {
            Ok(reply) => Ok(reply),
            Err(HintError::Refused(refusal)) => Err(self.explain(refusal)),
            Err(error) => Err(error.into()),
        }
    }

    fn explain(&mut self, refusal: Refusal) -> BalloonError {
        let status = match refusal {
            Refusal::NotNegotiated => self.status().ok(),
            _ => None,
        };
        let text = match (refusal, status) {
            (Refusal::NotNegotiated, Some(status)) => {
                why_not(&status, feature::FREE_PAGE_HINT, "free page hinting")
            }
            (Refusal::Migrating, _) => {
                "a migration is using the guest's hints: try again after it".into()
            }
            (Refusal::RoundOpen, _) => format!(
                "the guest has been asked already: see `lacuna balloon hints status`, \
                 end it with `lacuna balloon hints stop -c {}`",
                self.path.display()
            ),
            _ => return HintError::from(refusal).into(),
        };
        BalloonError::Guest(text)
    }
}

/// Why feature number `bit`, called `name`, cannot be used with this guest.
pub(super) fn why_not(status: &BalloonStatus, bit: u32, name: &str) -> String {
    if !status.connected {
        "no VMM is connected to the balloon device".into()
    } else if status.negotiated == 0 {
        "the guest's balloon driver is not up".into()
    } else if status.offered & (1 << bit) == 0 {
        format!("the device does not offer {name}")
    } else {
        format!("the guest's balloon driver has not taken {name}")
    }
}

/// `lacuna balloon device`
pub(super) fn serve(args: vhost_device_balloon::Args) -> Result<(), BalloonError> {
    args.run()
        .map_err(|error| BalloonError::Daemon(Box::new(error)))
}
