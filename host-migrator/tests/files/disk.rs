// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk in memory: it remembers every operation, or fails at one, and can be asked what a power cut would leave.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use host_migrator::snapshot::Storage;
use spec::stamp::Random;

/// An operation on a snapshot's file.
#[derive(Clone, Debug)]
pub enum Operation {
    Expect(u64),
    Write(u64, Vec<u8>),
    GiveBack(u64, u64),
    Sync,
    Publish,
}

/// Passes operations on to another storage, and remembers them. At one of them it fails.
#[derive(Debug)]
pub struct Watched {
    inner: Box<dyn Storage>,
    done: Arc<Mutex<Vec<Operation>>>,
    fails_at: Option<usize>,
    error: rustix::io::Errno,
}

impl Watched {
    pub fn new(inner: Box<dyn Storage>) -> (Self, Arc<Mutex<Vec<Operation>>>) {
        let done = Arc::<Mutex<_>>::default();
        let watched = Self {
            inner,
            done: Arc::clone(&done),
            fails_at: None,
            error: rustix::io::Errno::IO,
        };
        (watched, done)
    }

    /// Operation `at` fails with `error`.
    pub fn failing(inner: Box<dyn Storage>, at: usize, error: rustix::io::Errno) -> Self {
        Self {
            fails_at: Some(at),
            error,
            ..Self::new(inner).0
        }
    }

    fn note(&self, operation: Operation) -> io::Result<()> {
        let mut done = self.done.lock().unwrap();
        if self.fails_at == Some(done.len()) {
            return Err(self.error.into());
        }
        done.push(operation);
        Ok(())
    }
}

impl Storage for Watched {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn is_in_place(&self) -> bool {
        self.inner.is_in_place()
    }

    fn expect(&self, length: u64) -> io::Result<()> {
        self.note(Operation::Expect(length))?;
        self.inner.expect(length)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.note(Operation::Write(at, bytes.into()))?;
        self.inner.write(bytes, at)
    }

    fn write_pages(&self, content: &[u8], at: u64) -> io::Result<()> {
        self.note(Operation::Write(at, content.into()))?;
        self.inner.write_pages(content, at)
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.inner.read(bytes, at)
    }

    fn give_back(&self, at: u64, length: u64) -> io::Result<()> {
        self.note(Operation::GiveBack(at, length))?;
        self.inner.give_back(at, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.note(Operation::Sync)?;
        self.inner.sync()
    }

    fn publish(&self) -> io::Result<()> {
        self.note(Operation::Publish)?;
        self.inner.publish()
    }
}

/// A storage that keeps nothing.
#[derive(Debug)]
pub struct Nowhere {
    pub path: PathBuf,
    pub in_place: bool,
}

impl Storage for Nowhere {
    fn path(&self) -> &Path {
        &self.path
    }

    fn is_in_place(&self) -> bool {
        self.in_place
    }

    fn write(&self, _bytes: &[u8], _at: u64) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, bytes: &mut [u8], _at: u64) -> io::Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn give_back(&self, _at: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn publish(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that a disk writes whole.
const SECTOR: usize = 512;

/// What a file that contained `image` has after `done` and a power cut: all that was synced, and of the rest any sectors, in any
/// order.
pub fn after_power_cut(image: &[u8], done: &[Operation], random: &mut Random) -> Vec<u8> {
    let synced = (done.iter()).rposition(|operation| matches!(operation, Operation::Sync));
    let (synced, rest) = done.split_at(synced.map_or(0, |at| at + 1));
    let mut image = image.to_vec();
    synced
        .iter()
        .for_each(|operation| apply(&mut image, operation, &mut |_| true));
    // Now and then one operation does not come, or nothing, or any sectors.
    let lost = random.below(rest.len() as u64 + 2) as usize;
    for (index, operation) in rest.iter().enumerate() {
        let mut comes = |_| match lost.checked_sub(rest.len()) {
            None => index != lost,
            Some(0) => random.below(2) == 0,
            Some(_) => false,
        };
        apply(&mut image, operation, &mut comes);
    }
    image
}

/// What a file that contained `image` has after `done`.
pub fn after(image: &[u8], done: &[Operation]) -> Vec<u8> {
    let mut image = image.to_vec();
    done.iter()
        .for_each(|operation| apply(&mut image, operation, &mut |_| true));
    image
}

fn apply(image: &mut Vec<u8>, operation: &Operation, comes: &mut dyn FnMut(usize) -> bool) {
    let zeros;
    let (at, bytes) = match operation {
        Operation::Expect(length) => {
            if comes(0) && image.len() < *length as usize {
                image.resize(*length as usize, 0);
            }
            return;
        }
        Operation::Write(at, bytes) => (*at as usize, bytes),
        Operation::GiveBack(at, length) => {
            let end = (at + length).min(image.len() as u64);
            zeros = vec![0; end.saturating_sub(*at) as usize];
            (*at as usize, &zeros)
        }
        Operation::Sync | Operation::Publish => return,
    };
    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
        if comes(index) {
            let from = at + index * SECTOR;
            let to = from + sector.len();
            if image.len() < to {
                image.resize(to, 0);
            }
            image[from..to].copy_from_slice(sector);
        }
    }
}
