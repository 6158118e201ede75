"""What is wrong with Kafka, in words, and what to do about it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import aiokafka.errors as kafka_errors
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from syslogger.config import Kafka

from .producer import TOO_LARGE, client_settings

_ADVICE: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (kafka_errors.UnknownTopicOrPartitionError,),
        "create the topic {topic} (kafka-topics.sh --create --topic {topic} …), or set kafka.topic to one that exists",
    ),
    (
        (kafka_errors.TopicAuthorizationFailedError,),
        "grant {user} the operations Write and Describe on the topic {topic}",
    ),
    (
        (kafka_errors.ClusterAuthorizationFailedError,),
        (
            "grant {user} the operations Write and Describe on the topic {topic}; brokers before Kafka 2.8 also want "
            "IdempotentWrite on the cluster"
        ),
    ),
    (
        (kafka_errors.SaslAuthenticationFailed, kafka_errors.AuthenticationFailedError),
        "check kafka.sasl_username and kafka.sasl_password",
    ),
    (
        (kafka_errors.UnsupportedSaslMechanismError,),
        "set kafka.sasl_mechanism to one that the brokers have enabled",
    ),
    (
        TOO_LARGE,
        "smaller batches are tried; to have larger ones raise max.message.bytes of the topic {topic}",
    ),
    (
        (kafka_errors.NotEnoughReplicasError, kafka_errors.NotEnoughReplicasAfterAppendError),
        "bring brokers back: fewer replicas are in sync than min.insync.replicas asks for",
    ),
    (
        (kafka_errors.LeaderNotAvailableError, kafka_errors.NotLeaderForPartitionError),
        "the partition has no leader: see which brokers are down",
    ),
)


def advice(error: BaseException | None, settings: Kafka, topic: str = "") -> str:
    """Return what an operator can do about `error`; empty if there is nothing to say."""
    for kinds, text in _ADVICE:
        if isinstance(error, kinds):
            return text.format(topic=topic or settings.topic, user=settings.sasl_username or "this client")
    return ""


def named(error: BaseException, settings: Kafka, topic: str = "") -> str:
    """Return an error's name with what was said of it, and what to do; of another topic if one is named."""
    name = type(error).__name__.removesuffix("Error")
    said = " ".join(word for word in error.args if isinstance(word, str))
    what_to_do = advice(error, settings, topic)
    return name + (f" ({said})" if said else "") + (f"; {what_to_do}" if what_to_do else "")


def listed(addresses: Sequence[str]) -> str:
    """Return addresses for a message."""
    return ", ".join(addresses) or "no known address"


async def why_not(settings: Kafka, addresses: tuple[str, ...]) -> str:
    """Return why no producer could be started although each address was tried, in words that go on after them."""
    found = await asyncio.gather(*(inspect(settings, address) for address in addresses))
    problems = dict.fromkeys(each.problem or each.no_idempotence or each.no_topic for each in found)
    return ", ".join(filter(None, problems)) or "answers, but no producer could be started; trying again"


async def why_stuck(settings: Kafka, addresses: tuple[str, ...], partition: int, leader: str) -> str:
    """Return why a partition acknowledges nothing although the cluster answers; `leader` is its leader's address."""
    if leader:
        asked = await inspect(settings, leader)
        if asked.problem:
            return f"its leader, {leader}, {asked.problem}"
        found = [asked]
    else:
        found = await asyncio.gather(*(inspect(settings, address) for address in addresses))
    for each in found:
        least = int(each.topic_settings.get("min.insync.replicas", "1"))
        for one in each.partitions:
            if one.number == partition and not one.has_leader:
                return "it has no leader; see which brokers are down"
            if one.number == partition and one.in_sync < least:
                return (
                    f"{one.in_sync} replicas are in sync and min.insync.replicas asks for {least}; "
                    "bring brokers back or lower it"
                )
    seconds = settings.request_timeout_seconds
    return (
        f"its leader, {leader or 'unknown'}, is too slow or has lost sight of its replicas; if its answers take longer "
        f"than {seconds:g} s, raise kafka.request_timeout_seconds"
    )


async def _why_unreachable(addresses: tuple[str, ...], settings: Kafka) -> str:
    """Say what happens at the TCP level: aiokafka keeps the reason to itself."""
    reasons: list[str] = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(3):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except TimeoutError:
            reasons.append("does not answer: no reply to a connect within 3 s")
        except OSError as refused:
            number = refused.errno or 0  # a name that does not resolve has a negative one
            reasons.append(
                f"does not answer: {os.strerror(number).lower() if number > 0 else refused.strerror or refused}"
            )
        else:
            writer.close()
            return (
                f"accepts connections but does not answer as Kafka does with security_protocol = "
                f'"{settings.security_protocol}"; check kafka.security_protocol and that the port is a broker\'s'
            )
    return ", ".join(dict.fromkeys(reasons))


_INSPECT_SECONDS = 4.0
"""How long a broker may take to answer all that `inspect` asks; a request to it has three of them."""

_NOT_YET = (
    kafka_errors.GroupLoadInProgressError,
    kafka_errors.GroupCoordinatorNotAvailableError,
    kafka_errors.NotCoordinatorForGroupError,
)
"""A broker's words for a part of the cluster that is still starting."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of the topic, as the broker asked sees it."""

    number: int
    has_leader: bool
    replicas: int
    in_sync: int


@dataclass(slots=True)
class Findings:
    """What a broker says about its cluster and the topic."""

    problem: str = ""
    """Why it does not answer or lets nobody in, in words that go on after its address; then there is nothing else."""
    no_idempotence: str = ""
    """Why this client may not produce, in words; empty if it may."""
    brokers: tuple[str, ...] = ()
    """The addresses of the cluster's brokers, as they tell them to clients (``advertised.listeners``)."""
    no_topic: str = ""
    """Why the topic cannot be used, in words; empty if it is there."""
    missing: bool = False
    """Whether that is because there is no such topic."""
    similar: str = ""
    """A topic with nearly the same name, if the one asked for is missing."""
    partitions: tuple[Partition, ...] = ()
    topic_settings: Mapping[str, str] = field(default_factory=dict)
    """``min.insync.replicas`` and ``max.message.bytes`` as they hold for the topic, if they could be read."""
    no_topic_settings: str = ""
    """Why they could not, in words."""


async def inspect(settings: Kafka, address: str) -> Findings:
    """Ask the broker at `address`, and no other, about its cluster and the topic; a topic is not created by it.

    Returns within some 8 s. Raises `ConfigError` if the files for TLS cannot be used.
    """
    host, _, port = address.rpartition(":")
    client = client_settings(settings)
    client["request_timeout_ms"] = min(client["request_timeout_ms"], int(_INSPECT_SECONDS * 750))
    try:
        async with asyncio.timeout(_INSPECT_SECONDS):
            connection = await create_conn(
                host.strip("[]"),
                int(port),
                **client,
            )
            try:
                return await _asked(connection, settings)
            finally:
                await asyncio.wait({connection.close()}, timeout=0.5)
    except ssl.SSLCertVerificationError as error:
        return Findings(f"has a certificate that is not trusted: {error.verify_message}; check kafka.tls_ca_file")
    except TimeoutError:
        return Findings("accepts connections but did not answer in time; see whether the broker is well")
    except (kafka_errors.KafkaConnectionError, kafka_errors.IllegalSaslStateError, OSError, AssertionError):
        return Findings(await _why_unreachable((address,), settings))
    except kafka_errors.KafkaError as error:
        return Findings(f"refuses this client: {named(error, settings)}")


async def _asked(connection: AIOKafkaConnection, settings: Kafka) -> Findings:
    # Said in so many words: a broker would create the topic otherwise.
    metadata = await connection.send(MetadataRequest([settings.topic], allow_auto_topic_creation=False))
    found = Findings()
    found.brokers = tuple(sorted(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for _, h, p, *_ in metadata.brokers))
    code, *_, partitions = metadata.topics[0]
    error = kafka_errors.for_code(code)
    if error is not kafka_errors.NoError:
        found.no_topic = named(error(), settings)
        found.missing = error is kafka_errors.UnknownTopicOrPartitionError
    if found.missing:
        every = await connection.send(MetadataRequest(None, allow_auto_topic_creation=False))
        found.similar = next(iter(get_close_matches(settings.topic, [name for _, name, *_ in every.topics], 1)), "")
    found.partitions = tuple(
        Partition(number, leader >= 0, len(replicas), len(in_sync))
        for _, number, leader, replicas, in_sync, *_ in sorted(partitions, key=lambda each: each[1])
    )
    if not found.no_topic:
        await _ask_settings(connection, settings, found)
    found.no_idempotence = await _ask_idempotence(connection, settings)
    return found


async def _ask_settings(connection: AIOKafkaConnection, settings: Kafka, found: Findings) -> None:
    of_a_topic = 2
    names = ["min.insync.replicas", "max.message.bytes"]
    try:
        answer = await connection.send(DescribeConfigsRequest([(of_a_topic, settings.topic, names)]))
    except kafka_errors.IncompatibleBrokerVersion:
        found.no_topic_settings = "the broker has no such request"
        return
    ((code, _, _, _, entries),) = answer.resources
    error = kafka_errors.for_code(code)
    if error is kafka_errors.NoError:
        found.topic_settings = {name: value for name, value, *_ in entries}
    elif error is kafka_errors.TopicAuthorizationFailedError:
        user = settings.sasl_username or "this client"
        found.no_topic_settings = f"grant {user} the operation DescribeConfigs on the topic {settings.topic}"
    else:
        found.no_topic_settings = named(error(), settings)


async def _ask_idempotence(connection: AIOKafkaConnection, settings: Kafka) -> str:
    """Do the first thing that the daemon's producer does, and that only who may produce is allowed to."""
    while True:
        answer = await connection.send(InitProducerIdRequest(None, 60_000))
        error = kafka_errors.for_code(answer.error_code)
        if error is kafka_errors.NoError:
            return ""
        if error not in _NOT_YET:
            return named(error(), settings)
        await asyncio.sleep(0.2)
