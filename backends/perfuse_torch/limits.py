"""What torch's devices can take. Imports no torch."""

from perfuse_torch.devices import DEVICES

#: By device. The CPU is the first: it is the one that every machine has.
LIMITS = {
    f"{device.kind}*": device.limits
    for device in sorted(DEVICES.values(), key=lambda device: device.kind != "cpu")
}
