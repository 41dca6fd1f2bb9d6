// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ACPI tables of a hardware-reduced machine: processors, interrupt controllers, the serial console and
//! the virtio-mmio devices.

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::LinuxError;
use super::layout;
use crate::mmio::MmioSlot;

/// The tables, for [`layout::ACPI`]. The root pointer is at their start.
pub(super) fn tables(vcpus: u8, virtio_mmio: &[MmioSlot]) -> Result<Vec<u8>, LinuxError> {
    if virtio_mmio.len() > layout::VIRTIO_MMIO_MAX {
        return Err(LinuxError::TooManyDevices {
            count: virtio_mmio.len(),
        });
    }
    let mut image = vec![0; Rsdp::len()];
    let dsdt = append(&mut image, &dsdt(virtio_mmio)?);
    let fadt = append(&mut image, &fadt(dsdt).finalize());
    let madt = append(&mut image, &madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut image, &xsdt);
    let root = bytes(&Rsdp::new(OEM_ID, xsdt));
    image[..root.len()].copy_from_slice(&root);
    Ok(image)
}

const OEM_ID: [u8; 6] = *b"LACUNA";
const OEM_TABLE_ID: [u8; 8] = *b"REFERVMM";
const OEM_REVISION: u32 = 1;
/// Tables start at multiples of this.
const TABLE_ALIGNMENT: usize = 16;

/// Appends a table to `image` and returns its guest-physical address.
fn append(image: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    image.resize(image.len().next_multiple_of(TABLE_ALIGNMENT), 0);
    let address = layout::ACPI + image.len() as u64;
    table.to_aml_bytes(image);
    address
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    aml.to_aml_bytes(&mut out);
    out
}

/// Fixed hardware: only the registers that reset the machine and power it off.
fn fadt(dsdt: u64) -> FADTBuilder {
    /// Boot architecture: no VGA, no message-signalled interrupts, no PCIe power management, no clock in
    /// CMOS. The guest must not probe for missing hardware.
    const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;
    let port = |address| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            address,
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(layout::RESET_PORT.into());
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::POWER_OFF_PORT.into());
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT.into());
    fadt
}

/// Interrupt controllers: a local APIC for each vCPU and one I/O APIC, as KVM emulates them.
fn madt(vcpus: u8) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

/// The devices, and the sleep type that means "off".
fn dsdt(virtio_mmio: &[MmioSlot]) -> Result<Sdt, LinuxError> {
    /// The first revision whose integers have 64 bits.
    const REVISION: u8 = 2;
    let off = layout::POWER_OFF_SLEEP_TYPE;
    let mut devices = serial_device();
    for (index, slot) in virtio_mmio.iter().enumerate() {
        devices.extend(virtio_device(index, slot)?);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml::Scope::raw("_SB_".into(), devices));
    dsdt.append_slice(&bytes(&aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&off, &aml::ZERO]),
    )));
    Ok(dsdt)
}

fn serial_device() -> Vec<u8> {
    let port = layout::SERIAL_PORT;
    bytes(&aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(port, port, 1, 8),
                    &edge_triggered(layout::SERIAL_GSI),
                ]),
            ),
        ],
    ))
}

fn virtio_device(index: usize, slot: &MmioSlot) -> Result<Vec<u8>, LinuxError> {
    let base = u32::try_from(slot.gpa)
        .ok()
        .filter(|base| base.checked_add(layout::VIRTIO_MMIO_LEN).is_some())
        .filter(|_| slot.gsi < layout::IO_APIC_INPUTS)
        .ok_or(LinuxError::MmioSlot(*slot))?;
    Ok(bytes(&aml::Device::new(
        format!("V{index:03X}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, base, layout::VIRTIO_MMIO_LEN),
                    &edge_triggered(slot.gsi),
                ]),
            ),
        ],
    )))
}

/// An interrupt of a device: edge-triggered, active high, not shared.
fn edge_triggered(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: [MmioSlot; 2] = [
        MmioSlot {
            gpa: 0xd000_0000,
            gsi: 5,
        },
        MmioSlot {
            gpa: 0xd000_1000,
            gsi: 6,
        },
    ];

    /// The table at guest-physical `address`, by the length in its header.
    fn table(image: &[u8], address: u64) -> &[u8] {
        let table = &image[(address - layout::ACPI) as usize..];
        let len = u32::from_le_bytes(table[4..8].try_into().unwrap());
        &table[..len as usize]
    }

    fn quad(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_reached_from_the_root_pointer_and_sums_to_zero() {
        let image = tables(3, &SLOTS).unwrap();
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        let xsdt = table(&image, quad(&image, 24));
        let fadt = table(&image, quad(xsdt, 36));
        let madt = table(&image, quad(xsdt, 44));
        let dsdt = table(&image, quad(fadt, 140));
        for (table, signature) in [
            (xsdt, b"XSDT"),
            (fadt, b"FACP"),
            (madt, b"APIC"),
            (dsdt, b"DSDT"),
        ] {
            assert_eq!((&table[..4], sum(table)), (&signature[..], 0));
        }
        assert_eq!(
            madt.len(),
            44 + 3 * 8 + 12,
            "three local APICs and an I/O APIC"
        );
        let devices = dsdt.windows(8).filter(|name| name == b"LNRO0005").count();
        assert_eq!(devices, SLOTS.len());
    }

    #[test]
    fn tables_of_the_largest_machine_fit_and_one_device_more_is_refused() {
        let mut slots = vec![SLOTS[0]; layout::VIRTIO_MMIO_MAX];
        let image = tables(u8::MAX, &slots).unwrap();
        assert!(image.len() as u64 <= layout::RESET_VECTOR - layout::ACPI);
        slots.push(SLOTS[0]);
        assert!(matches!(
            tables(1, &slots),
            Err(LinuxError::TooManyDevices { count: 257 })
        ));
    }

    #[test]
    fn a_device_that_the_guest_cannot_reach_is_refused() {
        for slot in [
            MmioSlot {
                gpa: 1 << 32,
                gsi: 5,
            },
            MmioSlot {
                gpa: 0xffff_f001,
                gsi: 5,
            },
            MmioSlot {
                gpa: 0xd000_0000,
                gsi: 24,
            },
        ] {
            assert!(matches!(tables(1, &[slot]), Err(LinuxError::MmioSlot(bad)) if bad == slot));
        }
    }
}
