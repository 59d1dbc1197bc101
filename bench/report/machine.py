"""What a bench ran on, by the names that benches use."""

from storage.machine import hardware as hardware
from storage.machine import versions as versions
