"""One physical host: chips, the hypervisor and the guest kernel above them. Imports ``psp`` and ``tio``."""
