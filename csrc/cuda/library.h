// What registration asks before it registers.
#pragma once

namespace lk {

// Whether the driver's CUDA version reaches the one this library is built with, or there is no driver.
bool driver_serves();

} // namespace lk
