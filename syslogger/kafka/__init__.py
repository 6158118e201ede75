"""A sink that is a Kafka topic: group commit, and the supervision of aiokafka's producer.

`topic.py` keeps a producer that works in place; `lane.py` is the group commit of one partition; `values.py` makes JSON
and keys of records; `producer.py` is aiokafka's producer as the lanes use it; `diagnosis.py` says what is wrong with
Kafka and what to do about it.
aiokafka is imported in this package only.
"""

from .diagnosis import Findings, Partition, inspect
from .topic import Topic

__all__ = ["Findings", "Partition", "Topic", "inspect"]
