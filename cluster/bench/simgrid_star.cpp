/* The idle star of `sevfleet bench peers`, on SimGrid's live-migration plugin.
 *
 * Reads what is to happen from standard input: hosts, bytes a second of a link, its latency in
 * seconds, bytes of memory of a VM and how many VMs; then for each VM its name, its host, how
 * often it moves, and for each move the seconds after the one before and the host to go to.
 * Writes for each move its VM, when it was asked for, began and ended; then the seconds of wall
 * time that the engine ran and the most memory that the process held, in KiB.
 *
 * A host takes part in one migration at a time, first come, first served; one that waits for a
 * busy host does not hold up those behind it that need others.
 */
#include <chrono>
#include <cstdio>
#include <iostream>
#include <set>
#include <string>
#include <sys/resource.h>
#include <utility>
#include <vector>

#include <simgrid/plugins/live_migration.h>
#include <simgrid/s4u.hpp>

namespace sg4 = simgrid::s4u;

namespace {

struct Move {
  double pause;
  int target;
};

struct Waiting {
  int source;
  int target;
  sg4::SemaphorePtr admitted;
};

struct Admission {
  std::vector<bool> busy;
  std::vector<std::set<int>> lines; /* of each host: numbers of those who need it */
  std::vector<Waiting> all;

  explicit Admission(int hosts) : busy(hosts), lines(hosts) {}

  bool free(int source, int target) const { return !busy[source] && !busy[target]; }

  void acquire(int source, int target)
  {
    if (free(source, target)) {
      busy[source] = busy[target] = true;
      return;
    }
    const int number = static_cast<int>(all.size());
    auto admitted    = sg4::Semaphore::create(0);
    all.push_back({source, target, admitted});
    lines[source].insert(number);
    lines[target].insert(number);
    admitted->acquire();
  }

  void release(int source, int target)
  {
    busy[source] = busy[target] = false;
    std::set<int> concerned(lines[source]);
    concerned.insert(lines[target].begin(), lines[target].end());
    for (const int number : concerned) {
      auto& one = all[number];
      if (!free(one.source, one.target))
        continue;
      busy[one.source] = busy[one.target] = true;
      lines[one.source].erase(number);
      lines[one.target].erase(number);
      one.admitted->release();
    }
  }
};

void driver(sg4::VirtualMachine* vm, int at, const std::vector<Move>& moves, const std::vector<sg4::Host*>& hosts,
            Admission& admission)
{
  for (const auto& [pause, target] : moves) {
    sg4::this_actor::sleep_for(pause);
    const double asked = sg4::Engine::get_clock();
    admission.acquire(at, target);
    const double began = sg4::Engine::get_clock();
    sg_vm_migrate(vm, hosts[target]);
    const double ended = sg4::Engine::get_clock();
    admission.release(at, target);
    std::printf("%s %.9f %.9f %.9f\n", vm->get_cname(), asked, began, ended);
    at = target;
  }
}

} // namespace

int main(int argc, char** argv)
{
  sg4::Engine engine(&argc, argv);
  sg_vm_live_migration_plugin_init();

  int host_count = 0, vm_count = 0;
  double bytes_per_s = 0, latency_s = 0, memory_bytes = 0;
  if (!(std::cin >> host_count >> bytes_per_s >> latency_s >> memory_bytes >> vm_count))
    return 2;

  auto* star = sg4::create_star_zone("star");
  std::vector<sg4::Host*> hosts;
  for (int number = 0; number < host_count; number++) {
    const auto name = "host" + std::to_string(number);
    auto* host      = star->create_host(name, 1e9)->set_core_count(64)->seal();
    auto* up        = star->create_link(name + "-up", bytes_per_s)->set_latency(latency_s)->seal();
    auto* down      = star->create_link(name + "-down", bytes_per_s)->set_latency(latency_s)->seal();
    star->add_route(host->get_netpoint(), nullptr, nullptr, nullptr, {sg4::LinkInRoute(up)}, false);
    star->add_route(nullptr, host->get_netpoint(), nullptr, nullptr, {sg4::LinkInRoute(down)}, false);
    hosts.push_back(host);
  }
  star->seal();

  Admission admission(host_count);
  std::vector<std::vector<Move>> plans(vm_count);
  std::vector<sg4::VirtualMachine*> vms;
  for (auto& plan : plans) {
    std::string name;
    int at = 0, count = 0;
    if (!(std::cin >> name >> at >> count))
      return 2;
    plan.resize(count);
    for (auto& move : plan)
      if (!(std::cin >> move.pause >> move.target))
        return 2;
    auto* vm = hosts.at(at)->create_vm(name, 1, static_cast<size_t>(memory_bytes));
    vm->start();
    vms.push_back(vm);
    sg4::Actor::create("driver-" + name, hosts.at(at), [vm, at, &plan, &hosts, &admission]() {
      driver(vm, at, plan, hosts, admission);
    });
  }

  const auto began = std::chrono::steady_clock::now();
  engine.run();
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - began;
  struct rusage used {};
  getrusage(RUSAGE_SELF, &used);
  std::printf("wall %.6f\nmemory %ld\n", wall.count(), used.ru_maxrss);
  for (auto* vm : vms)
    vm->destroy();
  return 0;
}
