// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The threads that answer faults.

use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use spec::{PAGE_SIZE, PageRange};

use super::error::PagingError;
use super::missing::Need;
use super::pager::Origin;
use super::shared::Shared;

impl Shared {
    /// A thread that answers faults.
    pub(super) fn answer_faults(&self) -> Result<(), PagingError> {
        let mut faults = Vec::new();
        let mut content = vec![0; PAGE_SIZE as usize];
        while self.wait()? {
            self.missing.read_faults(&mut faults)?;
            while let Some(address) = faults.pop() {
                self.busy.fetch_add(1, Ordering::AcqRel);
                let answered = self.answer(address, &mut content, &mut faults);
                self.busy.fetch_sub(1, Ordering::AcqRel);
                match answered {
                    Ok(()) => self.complete_if_nothing_is_missing(),
                    Err(PagingError::Gone) => return Err(PagingError::Gone),
                    // Others wait for other pages.
                    Err(error) => self.fail(error),
                }
            }
        }
        Ok(())
    }

    /// Waits for a fault. False if the threads are to end.
    fn wait(&self) -> Result<bool, PagingError> {
        let Some(uffd) = self.missing.uffd() else {
            return Ok(false);
        };
        let mut waits = [
            PollFd::new(&*uffd, PollFlags::IN),
            PollFd::new(&self.ended, PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(PagingError::Read(error.into())),
        }
        if self.has_ended() {
            return Ok(false);
        }
        let events = waits[0].revents();
        if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Err(PagingError::Gone);
        }
        Ok(true)
    }

    fn answer(
        &self,
        address: u64,
        content: &mut [u8],
        faults: &mut Vec<u64>,
    ) -> Result<(), PagingError> {
        let began = Instant::now();
        // What was discarded meanwhile must be read before the kernel takes pages again. The faults that are read with it are
        // answered next.
        let mut refused = || self.missing.read_faults(faults);
        match self.missing.need(address) {
            // A mapping of another process that is not known here.
            None => return Err(PagingError::Unmapped(address)),
            Some(Need::Patience) => return Ok(()),
            Some(Need::Zero) => {
                self.zeros.fetch_add(1, Ordering::Relaxed);
                self.missing.zero(address, &mut refused)?;
            }
            Some(Need::Content(page)) => {
                self.near.store(page + 1, Ordering::Relaxed);
                self.touches.iter().for_each(|touches| touches.note(page));
                let Some(range) = PageRange::new(page, 1) else {
                    return Ok(());
                };
                match &self.origin {
                    Origin::Peer(peer) => {
                        self.asked.note(page, began);
                        peer.ask(page);
                        return Ok(());
                    }
                    Origin::Pager(pager) => match pager.read(range, content) {
                        Ok(()) => self.missing.place(range, content, &mut refused)?,
                        // It was discarded before its content could be read, and is zero.
                        Err(_) if !self.missing.is_absent(page) => self.missing.wake_all(range)?,
                        Err(error) => return Err(error.into()),
                    },
                }
            }
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.latency.record(began.elapsed());
        Ok(())
    }
}
