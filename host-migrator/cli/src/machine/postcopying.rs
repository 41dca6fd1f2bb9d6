// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that was handed over to this machine before its memory.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::Ownership;
use host_migrator::snapshot::HalfFile;

use host_migrator::destination::{
    Postcopy, PostcopyEvent, PostcopyOptions, PostcopyPhase, PostcopyStatus,
};
use host_migrator::paging::PagingOptions;
use host_migrator::wire::{Access, Address, Listener, TlsConfig};
use parking_lot::Mutex;

use super::process::Process;
use super::request::text;

/// How often a wait that was told to end is looked at.
const MOMENT: Duration = Duration::from_millis(10);
/// How long the end of such a wait may take.
const END_OF_WAIT: Duration = Duration::from_secs(2);

/// The postcopy to this machine, if there is one.
#[derive(Debug, Default)]
pub(super) struct Postcopying {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    postcopy: Option<Postcopy>,
    recovery: Option<Recovery>,
}

/// A wait for the source.
#[derive(Debug)]
struct Recovery {
    address: String,
    /// Whether the wait goes on.
    waits: Arc<AtomicBool>,
}

impl State {
    /// The postcopy, if its connection has broken. A wait for the source is told to end.
    ///
    /// # Errors
    /// A sentence, if there is nothing to recover.
    fn interrupted(&mut self) -> Result<Postcopy, String> {
        let postcopy = self.postcopy.clone().ok_or("there is no postcopy here")?;
        if let Some(recovery) = self.recovery.take() {
            recovery.waits.store(false, Ordering::Release);
        }
        match postcopy.status().phase {
            PostcopyPhase::Completed => Err("all of the guest's memory is here".into()),
            PostcopyPhase::Active => Err("the connection has not broken".into()),
            PostcopyPhase::Saved => Err("the guest was saved, and never runs here again".into()),
            _ => Ok(postcopy),
        }
    }
}

impl Postcopying {
    /// For `lacuna status`.
    pub(super) fn status(&self) -> Option<PostcopyStatus> {
        self.state.lock().postcopy.as_ref().map(Postcopy::status)
    }

    /// The postcopy whose connection has broken, and whose source is not waited for.
    ///
    /// # Errors
    /// A sentence, if there is none.
    pub(super) fn paused(&self) -> Result<Postcopy, String> {
        let state = self.state.lock();
        let postcopy = state.postcopy.as_ref().ok_or("there is no postcopy here")?;
        match postcopy.status().phase {
            PostcopyPhase::Paused => Ok(postcopy.clone()),
            PostcopyPhase::Completed => Err(
                "all of the guest's memory is here: save it whole, with `lacuna send file:PATH`"
                    .into(),
            ),
            PostcopyPhase::Recovering => Err("the source is waited for".into()),
            PostcopyPhase::Saved => Err("the guest was saved already".into()),
            _ => Err("the connection has not broken".into()),
        }
    }

    /// Where the source is waited for.
    pub(super) fn listening(&self) -> Option<String> {
        let state = self.state.lock();
        let recovery = state.recovery.as_ref()?;
        (recovery.waits.load(Ordering::Acquire)).then(|| recovery.address.clone())
    }

    /// Goes on with what the source has left in the file `half`, as `ours`, the record of this side, allows. A wait for the source ends.
    ///
    /// # Errors
    /// A sentence, if the connection has not broken, or the file does not fit.
    pub(super) fn go_on_from(&self, half: HalfFile, ours: Ownership) -> Result<(), String> {
        let mut state = self.state.lock();
        let postcopy = state.interrupted()?;
        let until = Instant::now() + END_OF_WAIT;
        while postcopy.status().phase == PostcopyPhase::Recovering && Instant::now() < until {
            thread::sleep(MOMENT);
        }
        postcopy.recover_from(half, ours).map_err(text)
    }

    /// Waits at `uri` for the source to go on; it may be silent for `patience` then. Returns the address. A wait at another address ends.
    ///
    /// # Errors
    /// A sentence, if the connection has not broken, or nobody can connect at `uri`.
    pub(super) fn listen_again(
        &self,
        uri: &str,
        tls: Option<&TlsConfig>,
        patience: Duration,
    ) -> Result<String, String> {
        let mut state = self.state.lock();
        let postcopy = state.interrupted()?;
        let address: Address = uri.parse().map_err(text)?;
        let listener = Listener::bind_for(&address, Access::new(None, None)).map_err(text)?;
        let listener = listener.with_patience(patience);
        let listener = match tls {
            Some(tls) => listener.with_tls(tls),
            None => listener,
        };
        let address = listener.address().to_string();
        let waits = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&waits);
        let thread = thread::Builder::new().name("recovery".into());
        let thread = thread.spawn(move || {
            let mut go_on = || still.load(Ordering::Acquire);
            while go_on() {
                match postcopy.status().phase {
                    PostcopyPhase::Paused => match postcopy.recover(&listener, &mut go_on) {
                        Ok(()) => {
                            log::info!("the postcopy goes on");
                            break;
                        }
                        Err(error) => log::warn!("{error}"),
                    },
                    // A wait at another address has been told to end. It may have let a source go on that is lost again.
                    PostcopyPhase::Recovering | PostcopyPhase::Active => thread::sleep(MOMENT),
                    _ => break,
                }
            }
            still.store(false, Ordering::Release);
        });
        thread.map_err(text)?;
        state.recovery = Some(Recovery {
            address: address.clone(),
            waits,
        });
        Ok(address)
    }
}

impl Process {
    /// How a guest is received whose source hands it over before its memory.
    pub(super) fn postcopy_options(self: &Arc<Self>) -> PostcopyOptions {
        let (begun, told) = (Arc::clone(self), Arc::clone(self));
        PostcopyOptions {
            threads: NonZeroUsize::MIN.max(PagingOptions::default().threads),
            begun: Box::new(move |postcopy| {
                begun.restoring().set_missing(true);
                if postcopy.is_complete() {
                    begun.restoring().set_missing(false);
                }
                begun.postcopying().state.lock().postcopy = Some(postcopy);
            }),
            told: Box::new(move |event| match event {
                PostcopyEvent::Complete => told.all_memory_came(),
                PostcopyEvent::Failed(error) => told.page_cannot_come(error),
                event => log::warn!("{event:?}"),
            }),
        }
    }
}
