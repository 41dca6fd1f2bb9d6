// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A minimal back end with only queues and a configuration space: no acknowledgements, no channel, no state, no dirty
//! log.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use spec::balloon::QueueNumbering;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::driver::FEATURES;

/// The back end, in a thread. It ends with its front end.
pub struct PlainBackEnd {
    folder: tempfile::TempDir,
    _thread: JoinHandle<()>,
}

impl PlainBackEnd {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let thread = std::thread::spawn(move || {
            let plain = Arc::new(Mutex::new(Plain([0; 16])));
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let mut daemon = VhostUserDaemon::new("plain".into(), plain, memory).unwrap();
            daemon.serve(path).unwrap();
        });
        Self {
            folder,
            _thread: thread,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

struct Plain([u8; 16]);

impl VhostUserBackendMut for Plain {
    type Bitmap = ();
    type Vring = VringRwLock<GuestMemoryAtomic<GuestMemoryMmap>>;

    fn num_queues(&self) -> usize {
        QueueNumbering::MAX_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.0.get(offset as usize..(offset + size) as usize);
        bytes.unwrap_or_default().to_vec()
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn update_memory(&mut self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::empty()).ok()
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        _rings: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        Ok(())
    }
}
