// The memory that emulated kernels get: copies of what Python hands over, each with its own ends, so that an access outside
// is found: a write by the guard bands around it, any access by AddressSanitizer where the module is built with it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <optional>
#include <stdexcept>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {

namespace py = pybind11;
using Bytes = py::array_t<uint8_t>;

// A copy of some bytes, at the same place relative to 64 bytes as the original.
class Copy {
  public:
    Copy(Bytes bytes, std::string name)
        : original_(std::move(bytes)), name_(std::move(name)), size_(size_t(original_.size())),
          front_(kBand + reinterpret_cast<uintptr_t>(original_.data()) % kBand) {
        if (posix_memalign(reinterpret_cast<void**>(&room_), kBand, front_ + size_ + kBack))
            throw std::bad_alloc();
        memset(room_, 0xff, front_ + size_ + kBack);
        memcpy(data(), original_.data(), size_);
#if defined(__SANITIZE_ADDRESS__)
        ASAN_POISON_MEMORY_REGION(room_, front_ / 8 * 8);
#endif
    }
    Copy(const Copy&) = delete;
    ~Copy() {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(room_, front_);
#endif
        free(room_);
    }

    char* data() const { return room_ + front_; }

    // Back to the original, unless something outside was written.
    void write_back() {
#if !defined(__SANITIZE_ADDRESS__)
        const auto touched = [](char c) { return uint8_t(c) != 0xff; };
        const char* const end = data() + size_;
        if (std::any_of(room_, room_ + front_, touched))
            throw std::runtime_error(name_ + " was written before its start");
        if (const char* at = std::find_if(end, end + kBack, touched); at != end + kBack)
            throw std::runtime_error(name_ + " was written " + std::to_string(at - end) + " bytes after its end");
#endif
        if (original_.writeable() && size_)
            memcpy(original_.mutable_data(), data(), size_);
    }

  private:
    static constexpr size_t kBand = 64;
#if defined(__SANITIZE_ADDRESS__)
    static constexpr size_t kBack = 0; // its own red zone follows
#else
    static constexpr size_t kBack = 4096;
#endif
    Bytes original_;
    std::string name_;
    size_t size_, front_;
    char* room_ = nullptr;
};

// All copies of one call.
class Memory {
  public:
    template <class T> T* of(const Bytes& bytes, const std::string& name) {
        return reinterpret_cast<T*>(copies_.emplace_back(bytes, name).data());
    }
    template <class T> T* of(const std::optional<Bytes>& bytes, const std::string& name) {
        return bytes ? of<T>(*bytes, name) : nullptr;
    }
    void write_back() {
        for (Copy& copy : copies_)
            copy.write_back();
    }

  private:
    std::deque<Copy> copies_;
};

} // namespace emulation
