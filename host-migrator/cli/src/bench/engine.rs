// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ours: a whole migration by the engine, of a machine that has memory and no processor.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use host_migrator::wire::{Address, Listener, TlsConfig};
use host_migrator::{
    Compression, Connection, Migration, MigrationParams, OwnershipRecord, Source, StillMachine,
    receive,
};

use super::BenchError;
use super::arm::{Arm, Place};
use super::content::Content;
use super::memory::Destination;
use super::record::{Clock, Sample};
use crate::args::Transport;
use crate::certificates;

/// How long this machine may take to connect to itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the destination's certificate is for.
const HOSTNAME: &str = "destination.lacuna";

/// A migration over this many channels.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) transport: Transport,
    pub(super) channels: u16,
    pub(super) place: Place,
    pub(super) compression: Compression,
    pub(super) tls: bool,
}

impl Arm for Engine {
    fn run(&self, content: &Content) -> Result<Sample, BenchError> {
        let destination = Destination::new(content, self.place == Place::Populated)?;
        let (near, far) = self.connected()?;
        let tls = self.tls()?;
        let far = match &tls {
            Some((_, destination)) => far.awaiting_tls(destination),
            None => far,
        };
        let clock = Clock::start();
        let (sent, received) = thread::scope(|scope| {
            let receiving = thread::Builder::new()
                .name("destination".into())
                .spawn_scoped(scope, || {
                    let ownership = OwnershipRecord::there();
                    receive(
                        far,
                        destination.ram(),
                        &mut StillMachine,
                        &ownership,
                        &mut |_| (),
                    )
                })
                .map_err(BenchError::io("cannot start a thread"))?;
            let near = match &tls {
                Some((source, _)) => near.with_tls(source).map_err(BenchError::io("TLS"))?,
                None => near,
            };
            let source = Source::new(Box::new(StillMachine), content.ram().clone());
            let params = MigrationParams::default()
                .with_multifd_channels(self.channels.into())
                .with_compression(self.compression);
            let migration = Migration::start(source, params, near)
                .map_err(BenchError::io("cannot start a thread"))?;
            let (_source, sent) = migration.join();
            let received = receiving
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, BenchError>((sent, received))
        })?;
        let took = clock.took();
        // If the destination failed, the source can only repeat what it was told.
        received?;
        let report = sent?;
        Ok(Sample {
            wire_bytes: Some(report.wire_bytes),
            ..Sample::new(took, content, Some(&destination))?
        })
    }
}

impl Engine {
    /// The source's end and the destination's.
    fn tls(&self) -> Result<Option<(TlsConfig, TlsConfig)>, BenchError> {
        if !self.tls {
            return Ok(None);
        }
        let folder = tempfile::tempdir().map_err(BenchError::io("cannot make a folder"))?;
        let made = certificates::make(folder.path(), &[HOSTNAME.to_owned()], 1)?;
        let source = TlsConfig::load(&made.source)?.expecting(HOSTNAME)?;
        Ok(Some((source, TlsConfig::load(&made.destination)?)))
    }

    /// The two ends of the migration's connections.
    fn connected(&self) -> Result<(Connection, Connection), BenchError> {
        let folder = tempfile::tempdir().map_err(BenchError::io("cannot make a folder"))?;
        let address = match self.transport {
            Transport::Tcp => Address::Tcp {
                host: Ipv4Addr::LOCALHOST.to_string(),
                port: 0,
            },
            Transport::Unix => Address::Unix(folder.path().join("migration")),
        };
        let listener = Listener::bind(&address)?;
        let connect = || -> Result<_, BenchError> {
            let near = Connection::connect(listener.address(), PATIENCE)?;
            let far = listener.accept(Some(PATIENCE))?;
            Ok((near, far))
        };
        let (near, far) = connect()?;
        if self.channels < 2 {
            return Ok((near, far));
        }
        let channels: Vec<_> = (0..self.channels)
            .map(|_| connect())
            .collect::<Result<_, _>>()?;
        let (near_channels, far_channels): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        Ok((near.with_more(near_channels), far.with_more(far_channels)))
    }
}
