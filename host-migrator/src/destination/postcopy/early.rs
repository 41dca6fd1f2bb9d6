// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that may be handed over before its memory, until it is.

use std::sync::Arc;

use spec::stream::{Nonce, SectionKind};

use super::asking::Asking;
use super::handle::{LanesSession, Postcopy, PostcopyOptions};
use super::placing::Coming;
use super::status::PostcopyEvent;
use crate::destination::error::ReceiveError;
use crate::destination::introduction::Shape;
use crate::destination::joining::Joined;
use crate::destination::placing::Placer;
use crate::memory::bitmap::MigrationBitmap;
use crate::memory::page_store::PageStore;
use crate::paging::{MissingPages, Paging, PagingError, PagingEvent, PagingOptions, Userfaultfd};
use crate::vm::machine::DestinationMachine;

/// The lanes of a source, and what it has promised.
pub(crate) struct Early {
    nonce: Nonce,
    first: u32,
    lanes: Vec<Joined>,
    uffd: Option<Userfaultfd>,
    promised: MigrationBitmap,
    is_promised: bool,
}

impl Early {
    /// For the `lanes` of the session of `nonce`, of which the first has the number `first`.
    pub(crate) fn new(nonce: Nonce, first: u32, lanes: Vec<Joined>, store: &dyn PageStore) -> Self {
        let ends = store.layout().regions().iter().map(|region| region.end());
        Self {
            nonce,
            first,
            lanes,
            uffd: None,
            promised: MigrationBitmap::new(ends.max().unwrap_or(0)),
            is_promised: false,
        }
    }

    /// Makes sure that page faults can be handled, if the VMM `wants` that.
    pub(crate) fn prepare(&mut self, wants: bool) -> Result<(), ReceiveError> {
        if !wants {
            return Err(ReceiveError::NoPostcopy);
        }
        self.uffd = Some(Userfaultfd::open(false).map_err(PagingError::from)?);
        Ok(())
    }

    /// The pages of `table` come after the hand-over.
    pub(crate) fn promise(&mut self, placer: Placer<'_>, table: &[u8]) -> Result<(), ReceiveError> {
        for run in placer.runs(SectionKind::Promised, table)? {
            self.promised.insert(run);
        }
        self.is_promised = true;
        Ok(())
    }

    /// Whether the source hands the guest over before its memory.
    pub(crate) fn is_promised(&self) -> bool {
        self.is_promised
    }

    /// Everything else has arrived: from now on whoever touches a promised page of `machine` waits for it.
    pub(crate) fn begin(
        self,
        store: &dyn PageStore,
        machine: &mut dyn DestinationMachine,
        options: PostcopyOptions,
    ) -> Result<Postcopy, ReceiveError> {
        let layout = store.layout();
        for run in self.promised.runs() {
            // What an earlier round has sent is old.
            let parts = layout.regions().iter();
            let mut parts = parts.filter_map(|region| region.intersection(run));
            parts.try_for_each(|part| store.make_zero(part))?;
        }
        let uffd = self.uffd.ok_or(ReceiveError::NoPostcopy)?;
        let mappings = machine.memory_will_be_missing()?;
        let missing = MissingPages::new(uffd, mappings, self.promised)?;
        let (asking, told): (_, Arc<dyn Fn(PostcopyEvent) + Send + Sync>) =
            (Arc::<Asking>::default(), options.told.into());
        let paging_has = {
            let (asking, told) = (Arc::clone(&asking), Arc::clone(&told));
            move |event| match event {
                PagingEvent::Complete => {
                    asking.complete();
                    told(PostcopyEvent::Complete);
                }
                PagingEvent::Failed(error) => told(PostcopyEvent::Failed(error)),
            }
        };
        let threads = PagingOptions {
            threads: options.threads,
            ..PagingOptions::default()
        };
        let requests = Arc::clone(&asking);
        let paging = Paging::start_from_peer(missing, requests, threads, Box::new(paging_has))?;
        let session = LanesSession {
            shape: Shape::of(store),
            nonce: self.nonce,
            first: self.first,
        };
        let coming = Arc::new(Coming {
            layout: layout.clone(),
            paging,
        });
        let postcopy = Postcopy::new(session, self.lanes, coming, asking, told)?;
        (options.begun)(postcopy.clone());
        Ok(postcopy)
    }
}
