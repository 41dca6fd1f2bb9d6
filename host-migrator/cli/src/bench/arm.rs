// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An arm of the bench: one way to move the content.

use host_migrator::{Compression, ZstdLevel};

use super::BenchError;
use super::bare_loop::BareLoop;
use super::content::Content;
use super::engine::Engine;
use super::iperf::Iperf;
use super::qemu::Qemu;
use super::record::Sample;
use crate::args::{ArmName, Transport};
use crate::nested::PackageError;

/// A way to move memory.
pub(super) trait Arm {
    /// Moves all of `content` once.
    ///
    /// # Errors
    /// [`BenchError`] if it did not arrive. Wrong pages are in the sample.
    fn run(&self, content: &Content) -> Result<Sample, BenchError>;
}

/// Where the memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A buffer that is used again and again.
    Scratch,
    /// A new memory file.
    Fresh,
    /// A memory file that has all its pages.
    Populated,
}

/// Why an arm cannot run here.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unable {
    /// It needs another program.
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// The arm `name` with `channels` connections.
///
/// # Errors
/// [`Unable`] if it cannot run here.
pub(super) fn arm(name: ArmName, channels: u16) -> Result<Box<dyn Arm>, Unable> {
    let bare = |transport, place| -> Result<Box<dyn Arm>, Unable> {
        Ok(Box::new(BareLoop {
            transport,
            place,
            channels,
        }))
    };
    let ours = |transport, place| -> Result<Box<dyn Arm>, Unable> {
        Ok(Box::new(Engine {
            transport,
            channels,
            place,
            compression: Compression::None,
            tls: false,
        }))
    };
    let compressed = |compression| -> Result<Box<dyn Arm>, Unable> {
        Ok(Box::new(Engine {
            transport: Transport::Tcp,
            channels,
            place: Place::Fresh,
            compression,
            tls: false,
        }))
    };
    let encrypted = |place| -> Result<Box<dyn Arm>, Unable> {
        Ok(Box::new(Engine {
            transport: Transport::Tcp,
            channels,
            place,
            compression: Compression::None,
            tls: true,
        }))
    };
    match name {
        ArmName::BareScratch => bare(Transport::Tcp, Place::Scratch),
        ArmName::BareFresh => bare(Transport::Tcp, Place::Fresh),
        ArmName::BarePopulated => bare(Transport::Tcp, Place::Populated),
        ArmName::Iperf3 => Ok(Box::new(Iperf::find(channels)?)),
        ArmName::LacunaFresh => ours(Transport::Tcp, Place::Fresh),
        ArmName::LacunaPopulated => ours(Transport::Tcp, Place::Populated),
        ArmName::LacunaLz4 => compressed(Compression::Lz4),
        ArmName::LacunaZstd => compressed(Compression::Zstd {
            level: ZstdLevel::default(),
        }),
        ArmName::LacunaTlsFresh => encrypted(Place::Fresh),
        ArmName::LacunaTlsPopulated => encrypted(Place::Populated),
        ArmName::QemuFresh => Ok(Box::new(Qemu::find(channels)?)),
        ArmName::BareUnixFresh => bare(Transport::Unix, Place::Fresh),
        ArmName::BareUnixPopulated => bare(Transport::Unix, Place::Populated),
        ArmName::LacunaUnixFresh => ours(Transport::Unix, Place::Fresh),
        ArmName::LacunaUnixPopulated => ours(Transport::Unix, Place::Populated),
    }
}
