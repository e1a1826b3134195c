"""What cannot work is refused before anything is installed, with what to do instead."""

import pytest

from chart import LEAST, Refused, least, merge, render

KEDA = {"kind": "keda"}

IMPOSSIBLE = [
    ({"write": {"databases": []}}, "write.databases: there is none; name at least one"),
    ({"read": {"databases": [{"name": "read-1"}]}}, r"read.databases\[0\].url: is missing; give read.databases\[0\].urlSecret the name"),
    ({"write": {"databases": [{"name": "w", "url": "postgres://h/d", "urlSecret": {"name": "a", "key": "b"}}]}}, "both are set; keep one"),
    ({"write": {"databases": LEAST["write"]["databases"] * 2}}, r"write.databases\[1\].name: write-1 is there twice"),
    ({"read": {"databases": LEAST["write"]["databases"]}}, "write-1 is the name of a write database, too"),
    ({"read": {"databases": [{"name": "r", "url": "postgres://h/d", "replicas": [{}]}]}}, r"read.databases\[0\].replicas\[0\].url: is missing"),
    ({"nats": {"urlSecret": {"name": ""}}}, "nats.url: is missing"),
    ({"installation": {"tokenKeySecret": {"name": ""}}}, "installation.tokenKey: is missing"),
    ({"installation": {"tokenKey": "ab" * 32}}, "installation.tokenKey and installation.tokenKeySecret: both are set"),
    ({"command": {"autoscaling": {"kind": "hpa", "min": 5, "max": 4}}}, "command.autoscaling: min 5 is above max 4"),
    ({"command": {"autoscaling": {"kind": "hpa", "cpu": None}}}, "command.autoscaling: nothing to scale by"),
    ({"query": {"autoscaling": KEDA}}, "query.autoscaling.kind is keda: keda.prometheus must say"),
    ({"projector": {"autoscaling": {"kind": "hpa", "max": 65}}}, "projector.autoscaling.max: 65 replicas would share 64 partitions"),
    ({"saga": {"replicas": 65}}, "saga.replicas: 65 replicas would share 64 partitions"),
    ({"query": {"shutdown": {"graceSeconds": 34}}}, r"query.shutdown.graceSeconds: 34 s is less than sleep \+ drain \+ 10 = 35 s"),
    ({"defaults": {"serviceAccount": {"name": "shop"}}}, "query.serviceAccount: shop is made by command already"),
    ({"audit": {"replicas": 2}}, "audit.replicas: one auditor is enough"),
    ({"audit": {"autoscaling": {"kind": "hpa"}}}, "audit.autoscaling: one auditor is enough"),
    ({"regions": {"others": [{"name": "us"}]}}, r"regions.others\[0\]: networkPolicy is enabled and would keep us out; give it cidrs or peers"),
    ({"regions": {"others": [{"name": "local", "cidrs": ["10.2.0.0/16"]}]}}, r"regions.others\[0\].name: local is this region"),
    ({"regions": {"others": [{"name": "us", "cidrs": ["10.2.0.0/16"]}] * 2}}, r"regions.others\[1\].name: us is there twice"),
    ({"regions": {"service": {"type": "LoadBalancer"}}}, "regions.service.type: there is nobody to reach it"),
    ({"saga": {"resources": {"limits": {"cpu": "1e3"}}}}, "saga.resources: cpu 1e3 is neither cores nor thousandths of one"),
    ({"layout": "combined", "query": {"replicas": 2}}, "query.replicas: layout is combined"),
    ({"layout": "combined", "combined": {"autoscaling": {"kind": "hpa"}}}, "combined.autoscaling: the pod holds all services"),
]

RENAMED = [
    ({"replicaCount": 3}, "replicaCount: is called command.replicas"),
    ({"serviceMonitor": {"enabled": True}}, "serviceMonitor: is called monitoring.serviceMonitor here"),
    ({"postgresql": {"enabled": True}}, "postgresql: is called write.databases and read.databases here"),
]

# What types and patterns of the schema say; each Helm has words of its own for it.
MALFORMED = [
    {"layout": "apart-ish"},
    {"defaults": {"threads": -1}},
    {"query": {"threads": "2"}},
    {"image": {"tag": "latest"}},
    {"image": {"digest": "sha256:12"}},
    {"installation": {"partitions": 0}},
    {"installation": {"partitions": "64"}},
    {"write": {"databases": [{"name": "W 1", "urlSecret": {"name": "a", "key": "b"}}]}},
    {"write": {"databases": [{"name": "w", "url": "mysql://h/d"}]}},
    {"write": {"databases": [{"name": "w", "url": "postgres://h/d", "replicas": []}]}},
    {"read": {"databases": [{"name": "r", "url": "postgres://h/d", "pooledUrl": "postgres://h/d"}]}},
    {"migrations": {"mode": "never"}},
    {"settings": {"installation": {"partitions": 3}}},
    {"defaults": {"autoscaling": {"kind": "vpa"}}},
    {"projector": {"replicas": 0}},
    {"projector": {"every": "1h"}},
    {"audit": {"every": "25h"}},
    {"audit": {"lastEvents": 0}},
    {"regions": {"others": [{"name": "US"}]}},
    {"regions": {"others": [{"name": "us", "cidrs": ["anywhere"]}]}},
    {"regions": {"others": [{"name": "us", "cidrs": ["10.2.0.0/16"], "endpoints": ["us:50061"]}]}},
    {"regions": {"ports": []}},
]


@pytest.mark.parametrize("helm", "34")
@pytest.mark.parametrize("values, says", IMPOSSIBLE + RENAMED)
def test_it_says_what_cannot_work(values, says, helm):
    with pytest.raises(Refused, match=says):
        least(values, helm=helm)


@pytest.mark.parametrize("helm", "34")
@pytest.mark.parametrize("values", MALFORMED)
def test_malformed_values_are_refused(values, helm):
    with pytest.raises(Refused, match="values don't meet the specifications of the schema"):
        render(values=merge(LEAST, values), helm=helm)


def test_what_is_refused_is_only_that():
    assert least()
    assert least({"projector": {"autoscaling": {"kind": "hpa", "max": 64}}})
    assert least({"defaults": {"serviceAccount": {"name": "shop", "create": False}}})
    assert least({"query": {"shutdown": {"graceSeconds": 35}}})
