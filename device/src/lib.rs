// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user back end for the virtio memory balloon, with free page hinting.
