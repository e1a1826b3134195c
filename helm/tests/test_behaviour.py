"""What the switches do."""

import tomllib

import pytest

from chart import OLDEST, SIZES, hook, least, name, of_kind, one, pod_spec, size


def deployment(found, named="command"):
    return one(found, "Deployment", f"souk-{named}")


class TestReplicas:
    def test_without_an_autoscaler_they_are_rendered(self):
        assert deployment(least({"command": {"replicas": 3}}))["spec"]["replicas"] == 3

    @pytest.mark.parametrize("kind", ["hpa", "keda"])
    def test_an_autoscaler_rules_alone_unless_told_otherwise(self, kind):
        values = {"keda": {"prometheus": "http://p:9090"}, "command": {"replicas": 3, "autoscaling": {"kind": kind}}}
        assert "replicas" not in deployment(least(values))["spec"]
        values["command"]["autoscaling"]["preserveReplicas"] = False
        assert deployment(least(values))["spec"]["replicas"] == 3

    def test_a_budget_is_made_from_two_on(self):
        budgets = lambda replicas: {name(budget)[1] for budget in of_kind(least({"command": {"replicas": replicas}}), "PodDisruptionBudget")}
        assert budgets(1) == set() and budgets(2) == {"souk-command"}

    def test_every_size_but_the_smallest_bears_the_loss_of_a_pod(self):
        for of in SIZES[1:]:
            found = size(of)
            apart = {named for _, named in map(name, of_kind(found, "Deployment"))} - {"souk-audit"}
            assert {named for _, named in map(name, of_kind(found, "PodDisruptionBudget"))} == apart

    def test_projectors_are_never_more_than_partitions(self):
        for of in SIZES:
            for scaled in of_kind(size(of), "ScaledObject", "HorizontalPodAutoscaler"):
                spec = scaled["spec"]
                most = spec.get("maxReplicaCount", spec.get("maxReplicas"))
                if scaled["metadata"]["name"] in ("souk-projector", "souk-saga"):
                    assert most <= 64


class TestKeda:
    def scaled(self, of, size_of="1m"):
        return one(size(size_of), "ScaledObject", f"souk-{of}")["spec"]

    @pytest.mark.parametrize(
        "of, metric", [("projector", "souk_projection_lag_events"), ("command", "souk_queue_wait_seconds_bucket"), ("query", "souk_rpc_in_flight")]
    )
    def test_services_scale_on_what_souk_says_of_itself(self, of, metric):
        spec = self.scaled(of)
        trigger = spec["triggers"][0]
        assert trigger["type"] == "prometheus" and metric in trigger["metadata"]["query"]
        assert f'namespace="souk",service="souk-{of}-headless"' in trigger["metadata"]["query"]
        # A fallback works for averages alone.
        assert trigger["metricType"] == "AverageValue"
        assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
        assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
        assert float(trigger["metadata"]["threshold"]) > 0

    def test_queries_scale_on_cpu_as_well_and_sagas_on_it_alone(self):
        kinds = lambda of: [trigger["type"] for trigger in self.scaled(of)["triggers"]]
        assert kinds("query") == ["prometheus", "cpu"] and kinds("saga") == ["cpu"]
        assert "fallback" not in self.scaled("saga")


class TestMigrations:
    """A hook must not wait for what is installed after it, nor anything for a hook that runs after it."""

    def job(self, found):
        jobs = of_kind(found, "Job")
        assert len(jobs) == 1
        return jobs[0]

    @pytest.mark.parametrize("mode", ["hook", "job"])
    def test_the_first_install_has_no_hook_at_all(self, mode):
        found = least({"migrations": {"mode": mode}})
        assert not hook(self.job(found))
        # A test is run by `helm test` alone.
        assert {hook(object) for object in found} == {None, "test"}

    def test_an_upgrade_migrates_before_services_are_replaced(self):
        found = least(upgrade=True)
        job = self.job(found)
        hooked = [object for object in found if hook(object) == "pre-upgrade"]
        assert {object["kind"] for object in hooked} == {"Job", "ConfigMap", "ServiceAccount"}
        weights = {object["kind"]: int(object["metadata"]["annotations"]["helm.sh/hook-weight"]) for object in hooked}
        assert all(weights[kind] < weights["Job"] for kind in weights if kind != "Job")
        assert all(object["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded" for object in hooked)
        # What it uses is its own: that of the services is not there yet, or is that of the release before.
        own = {named for _, named in map(name, hooked)}
        pod = pod_spec(job)
        assert pod["serviceAccountName"] in own and pod["volumes"][0]["configMap"]["name"] in own

    def test_secrets_in_values_are_hooked_with_it(self):
        values = {"installation": {"tokenKey": "ab" * 32, "tokenKeySecret": {"name": ""}}}
        secret = one(least(values, upgrade=True), "Secret", "souk-migrate")
        assert hook(secret) == "pre-upgrade" and secret["stringData"] == {"token-key": "ab" * 32}

    def test_mode_job_never_has_a_hook_and_names_the_job_by_its_content(self):
        named = lambda **values: self.job(least({"migrations": {"mode": "job"}} | values, upgrade=True))["metadata"]["name"]
        assert not hook(self.job(least({"migrations": {"mode": "job"}}, upgrade=True)))
        first = named()
        assert named() == first
        others = {named(image={"tag": "0.2.0"}), named(secretsVersion="2"), named(settings={"telemetry": {"log_format": "human"}})}
        assert len(others) == 3 and first not in others

    def test_mode_external_makes_nothing(self):
        found = least({"migrations": {"mode": "external"}})
        assert not of_kind(found, "Job") and not any("migrate" in named for _, named in map(name, found))

    def test_no_service_migrates_by_itself(self):
        for settings in one(least(), "ConfigMap", "souk-settings")["data"].values():
            assert "migrate = false" in settings


class TestStopping:
    def test_pods_sleep_natively_where_kubernetes_can_and_pause_by_themselves_where_it_cannot(self):
        environment = lambda container: {variable["name"]: variable.get("value") for variable in container["env"]}
        new = pod_spec(deployment(least(kube="1.30.0")))["containers"][0]
        assert new["lifecycle"]["preStop"]["sleep"]["seconds"] == 5 and "SOUK_process__shutdown_pause" not in environment(new)
        old = pod_spec(deployment(least(kube=OLDEST)))["containers"][0]
        assert "lifecycle" not in old and environment(old)["SOUK_process__shutdown_pause"] == "5s"

    def test_the_grace_follows_the_drain(self):
        found = least({"saga": {"shutdown": {"drainSeconds": 100, "sleepSeconds": 7}}})
        assert pod_spec(deployment(found, "saga"))["terminationGracePeriodSeconds"] == 122


class TestThreads:
    """As many as a container has CPU: the cores it sees are those of the node."""

    def threads(self, values, of="command", named="SOUK_process__threads", **options):
        containers = pod_spec(deployment(least(values, **options), of))["containers"]
        found = {variable["value"] for container in containers for variable in container["env"] if variable["name"] == named}
        assert len(found) <= 1
        return found.pop() if found else None

    QUANTITIES = [("100m", "1"), ("1000m", "1"), ("1001m", "2"), ("1500m", "2"), ("16000m", "16"), ("2", "2"), (2, "2"), (0.5, "1"), ("0.5", "1"), (".5", "1"), (2.1, "3"), ("0", "1")]

    @pytest.mark.parametrize("helm", "34")
    @pytest.mark.parametrize("cpu, threads", QUANTITIES)
    def test_they_are_the_cpu_it_asks_for_rounded_up(self, cpu, threads, helm):
        assert self.threads({"command": {"resources": {"requests": {"cpu": cpu}}}}, helm=helm) == threads

    @pytest.mark.parametrize("cpu, threads", QUANTITIES)
    def test_a_limit_goes_before_what_it_asks_for(self, cpu, threads):
        assert self.threads({"command": {"resources": {"requests": {"cpu": "7"}, "limits": {"cpu": cpu}}}}) == threads

    @pytest.mark.parametrize("helm", "34")
    @pytest.mark.parametrize("resources", [{"requests": {"cpu": None}}, {"requests": None}, {"requests": None, "limits": None}])
    def test_one_that_says_nothing_of_cpu_has_one(self, resources, helm):
        assert self.threads({"defaults": {"resources": resources}}, helm=helm) == "1"

    def test_each_service_has_its_own(self):
        values = {"defaults": {"resources": {"requests": {"cpu": "3"}}}, "query": {"resources": {"requests": {"cpu": "5"}}}, "saga": {"threads": 7}}
        assert [self.threads(values, of) for of in ("command", "query", "projector", "saga")] == ["3", "5", "3", "7"]

    def test_the_auditor_gets_them_as_the_runtime_of_a_command_does(self):
        values = {"audit": {"resources": {"requests": {"cpu": "1500m"}}}}
        assert self.threads(values, "audit", "TOKIO_WORKER_THREADS") == "2" and self.threads(values, "audit") is None
        assert self.threads(values, "command", "TOKIO_WORKER_THREADS") is None

    def test_a_number_of_ones_own_goes_before_all_and_zero_leaves_it_to_the_service(self):
        limited = {"resources": {"limits": {"cpu": "2"}}}
        assert self.threads({"command": limited | {"threads": 6}}) == "6"
        assert self.threads({"defaults": limited | {"threads": 6}, "command": {"threads": 0}}) is None
        # The runtime of a command takes no zero.
        assert self.threads({"audit": {"threads": 0}}, "audit", "TOKIO_WORKER_THREADS") is None

    @pytest.mark.parametrize(
        "of, threads",
        [
            ("100", {"combined": "1"}),
            ("10k", {"command": "1", "query": "1", "projector": "1", "saga": "1"}),
            ("1m", {"command": "1", "query": "2", "projector": "1", "saga": "1"}),
            ("100m", {"command": "4", "query": "8", "projector": "4", "saga": "4", "replicator": "2"}),
        ],
    )
    def test_every_size_has_them(self, of, threads):
        for service, wanted in threads.items():
            containers = pod_spec(deployment(size(of), service))["containers"]
            set_to = [variable["value"] for container in containers for variable in container["env"] if variable["name"] == "SOUK_process__threads"]
            assert set_to == [wanted] * len(containers), service

    def test_the_one_pod_of_all_has_those_of_each_container(self):
        both = {"layout": "both", "query": {"resources": {"requests": {"cpu": "2"}}}, "combined": {"resources": {"requests": {"cpu": "3"}}}}
        assert self.threads(both, "combined") == "3" and self.threads(both, "query") == "2"


class TestRestarts:
    def annotations(self, of, **changes):
        return deployment(least(changes), of)["spec"]["template"]["metadata"]["annotations"]

    @pytest.mark.parametrize(
        "changes, restarted",
        [
            ({"settings": {"query": {"token_wait": "2s"}}}, {"query"}),
            ({"settings": {"grpc": {"default_deadline": "2s"}}}, {"command", "query", "projector", "saga"}),
            ({"read": {"databases": [{"name": "read-1", "urlSecret": {"name": "other", "key": "r"}}]}}, {"query", "projector"}),
            ({"write": {"databases": [{"name": "write-1", "url": "postgres://h/new"}]}}, {"command", "saga"}),
            ({"secretsVersion": "2"}, {"command", "query", "projector", "saga"}),
            ({"monitoring": {"serviceMonitor": {"enabled": True}}}, set()),
        ],
    )
    def test_a_service_starts_anew_for_its_own_inputs(self, changes, restarted):
        of_all = ["command", "query", "projector", "saga"]
        assert {of for of in of_all if self.annotations(of) != self.annotations(of, **changes)} == restarted


class TestLayouts:
    def test_combined_is_one_pod_behind_the_same_services(self):
        found = size("100")
        assert [name(object)[1] for object in of_kind(found, "Deployment")] == ["souk-combined"]
        assert len(pod_spec(of_kind(found, "Deployment")[0])["containers"]) == 4
        services = lambda of: {name(service) for service in of_kind(size(of), "Service")} - {("Service", "souk-audit-headless")}
        assert services("100") == services("1m")

    def test_in_one_pod_services_find_each_other_on_its_own_address(self):
        containers = {container["name"]: container for container in pod_spec(of_kind(size("100"), "Deployment")[0])["containers"]}
        peers = lambda of: {variable["name"]: variable["value"] for variable in containers[of]["env"] if "peers" in variable["name"]}
        assert peers("saga") == {"SOUK_peers__command": "http://127.0.0.1:50051", "SOUK_peers__command_internal": "http://127.0.0.1:50061"}
        assert peers("projector") == {"SOUK_peers__command_internal": "http://127.0.0.1:50061"}
        assert peers("query") == peers("command") == {}


class TestAuditor:
    def container(self, **audit):
        return pod_spec(deployment(least({"audit": audit}), "audit"))["containers"][0]

    def test_it_is_one_that_no_autoscaler_and_no_budget_knows(self):
        scaled = {"keda": {"prometheus": "http://p:9090"}, "defaults": {"replicas": 3, "autoscaling": {"kind": "keda", "min": 3}}}
        found = least(scaled)
        assert deployment(found, "audit")["spec"]["replicas"] == 1 and deployment(found, "audit")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        others = {named for kind, named in map(name, found) if kind in ("ScaledObject", "HorizontalPodAutoscaler", "PodDisruptionBudget")}
        assert others == {"souk-command", "souk-query", "souk-projector", "souk-saga"}

    def test_it_knows_how_long_the_ledger_remembers_and_nothing_else_of_commands(self):
        read = lambda command: tomllib.loads(one(least({"settings": {"command": command}}), "ConfigMap", "souk-settings")["data"]["audit.toml"])
        assert read({"ledger_retention": "30days", "queue_length": 9})["command"] == {"ledger_retention": "30days"}
        assert "command" not in read({"queue_length": 9})

    def test_it_runs_the_audit_with_what_the_values_say(self):
        container = self.container(every="30m", lastEvents=2000000, parallel=2, settle="1m")
        assert container["command"] == ["/usr/local/bin/souk"]
        assert container["args"][:3] == ["audit", "--json", "--config=/etc/souk/audit.toml"]
        assert container["args"][3:] == ["--every=30m", "--last=2000000", "--parallel=2", "--settle=1m", "--ops=0.0.0.0:50075"]
        assert [port["containerPort"] for port in container["ports"]] == [50075]

    def test_its_settings_name_every_database_and_nats_and_no_door(self):
        import tomllib

        settings = tomllib.loads(one(size("1m"), "ConfigMap", "souk-settings")["data"]["audit.toml"])
        named = lambda side: [database["name"] for database in settings[side]["databases"]]
        assert named("write") == ["write-1", "write-2"] and named("read") == ["read-1"]
        assert settings["nats"]["stream_replicas"] == 3 and "listen" not in settings and "peers" not in settings

    def test_it_may_be_left_out_with_all_that_is_its(self):
        assert not [named for _, named in map(name, least({"audit": {"enabled": False}})) if "audit" in named]
        assert "audit.toml" not in one(least({"audit": {"enabled": False}}), "ConfigMap", "souk-settings")["data"]

    def test_whoever_gets_alerts_gets_the_auditor_they_rest_on(self):
        kinds = {of: {name(object) for object in size(of)} for of in SIZES}
        audited = {of for of in SIZES if ("Deployment", "souk-audit") in kinds[of]}
        assert audited == {of for of in SIZES if ("PrometheusRule", "souk") in kinds[of]} == set(SIZES[1:])


class TestMonitoring:
    def test_prometheus_scrapes_each_pod_once(self):
        found = size("1m")
        monitor = one(found, "ServiceMonitor", "souk")["spec"]
        chosen = [
            service
            for service in of_kind(found, "Service")
            if "souk/headless" in service["metadata"]["labels"]
        ]
        assert len(chosen) == 5 and all(any(port["name"] == "ops" for port in service["spec"]["ports"]) for service in chosen)
        assert monitor["endpoints"][0]["port"] == "ops" and monitor["namespaceSelector"]["matchNames"] == ["souk"]


class TestTheTest:
    def test_it_places_an_order_through_both_services(self):
        pod = pod_spec(one(least(), "Pod", "souk-test-order"))
        assert pod["containers"][0]["args"] == ["demo", "--command=http://souk-command:50051", "--query=http://souk-query:50052"]
        assert pod["restartPolicy"] == "Never"
        assert not of_kind(least({"tests": {"enabled": False}}), "Pod")


class TestSettings:
    def settings(self, service, values):
        return one(least(values), "ConfigMap", "souk-settings")["data"][f"{service}.toml"]

    def test_numbers_texts_and_nested_values_are_toml(self):
        import tomllib

        given = {"grpc": {"max_connections": 1000000, "connection_age_jitter": 0.25, "default_deadline": "5s"}, "telemetry": {"log_filter": 'info,"x"\\'}}
        read = tomllib.loads(self.settings("command", {"settings": given, "nats": {"streamMaxBytes": 1 << 40}}))
        assert read["grpc"] == given["grpc"] and type(read["grpc"]["max_connections"]) is int
        assert read["telemetry"] == {"log_filter": 'info,"x"\\', "log_format": "json"}
        assert read["nats"]["stream_max_bytes"] == 1 << 40
        assert read["write"]["databases"] == [{"name": "write-1", "url": {"file": "/run/souk/write-1/url"}}]

    def test_poolers_and_replicas_are_named(self):
        import tomllib

        database = {"name": "write-1", "url": "postgres://h/d", "pooledUrl": "postgres://p/d", "maxConnections": 7}
        read = tomllib.loads(self.settings("saga", {"write": {"databases": [database]}}))["write"]["databases"]
        assert read == [{"name": "write-1", "url": {"file": "/run/souk/write-1/url"}, "pooled_url": {"file": "/run/souk/write-1/pooled-url"}, "max_connections": 7}]


@pytest.mark.parametrize("of", SIZES)
def test_notes_name_the_next_commands(of):
    # `helm template` leaves the notes out; the text is rendered as an object of ours instead.
    from chart import CHART

    notes = (CHART / "templates/NOTES.txt").read_text()
    probe = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: |\n" + "{{- define \"notes\" }}" + notes + "{{ end }}{{ include \"notes\" . | nindent 4 }}\n"
    said = one(size(of, values={"extraObjects": [probe]}), "ConfigMap", "notes")["data"]["notes"]
    for command in ("helm --namespace souk test souk", "kubectl --namespace souk get pods", "port-forward service/souk-command 50051"):
        assert command in said
    assert "write-1, " in said and "64 partitions" in said and "JetStream must have" in said
